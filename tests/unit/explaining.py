"""A configuration, tuples and flows that the tests of explaining share."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from nat_rewriter.explain import Packet
from nat_rewriter.model.flows import Flow, Status
from nat_rewriter.model.tuples import FlowTuple


def flow_tuple(protocol: str, src: str, sport: int, dst: str, dport: int) -> FlowTuple:
    return FlowTuple(protocol, ip_address(src), sport, ip_address(dst), dport)


TCP = flow_tuple("tcp", "198.51.100.10", 9000, "203.0.113.1", 443)
UDP6 = flow_tuple("udp", "2001:db8::1", 9000, "2001:db8::2", 53)
ECHO = flow_tuple("icmp", "198.51.100.10", 77, "203.0.113.1", 77)
ECHO6 = flow_tuple("icmpv6", "2001:db8::1", 77, "2001:db8::2", 77)


CONFIG = """
version = 1
[controller]
coexist = "confine"
[[slice]]
name = "ams-1"
address = "198.51.100.10"
ports = ["9000-9009", "9100-9119"]
protocols = ["tcp", "udp", "icmp"]
[[slice]]
name = "ams-6"
address = "2001:db8::10"
ports = ["9000-9009"]
[[slice]]
name = "tcp-only"
address = "198.51.100.11"
ports = ["80"]
protocols = ["tcp"]
[[snat]]
name = "marked"
mark = 16
slices = ["ams-1"]
[[snat]]
name = "web"
iifname = ["fish0", "fish1"]
destination = ["203.0.113.0/24"]
exclude = ["203.0.113.9"]
exclude_source = ["10.0.0.9"]
slices = ["tcp-only"]
[[snat]]
name = "all"
source = ["10.0.0.0/24", "10.1.0.0/24", "10.3.0.0/24", "10.5.0.0/24"]
slices = ["ams-1"]
[[snat]]
name = "six"
oifname = "eth0"
slices = ["ams-6"]
[[dnat]]
name = "inbound"
slice = "ams-1"
ports = ["9000-9004"]
to = "10.0.0.2:80"
"""


def packet(protocol: str = "tcp", src: str = "10.0.0.2", dst: str = "203.0.113.1", **options: Any) -> Packet:
    return Packet(flow_tuple(protocol, src, 40000, dst, 443), **({"iifname": "fish0", "oifname": "eth0"} | options))


SOFT = ip_address("198.51.100.10")


def nat_flow(
    number: int,
    port: int,
    state: str = "ESTABLISHED",
    *,
    dport: int = 443,
    sport: int | None = None,
    protocol: str = "tcp",
) -> Flow:
    original = flow_tuple(protocol, "10.0.0.7", sport or 30000 + number, "203.0.113.1", dport)
    reply = flow_tuple(protocol, "203.0.113.1", dport, "198.51.100.10", port)
    return Flow(original, reply, Status.CONFIRMED | Status.SRC_NAT, number, state=state)


def local_flow(port: int, wire: int | None = None) -> Flow:
    original = replace(TCP, sport=port)
    status = Status.CONFIRMED | (Status.SRC_NAT if wire else Status(0))
    return Flow(original, replace(original, sport=wire or port).reversed(), status, 99, state="ESTABLISHED")
