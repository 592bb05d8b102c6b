"""Hand-made tables of flows and sockets, and a small configuration to judge them by."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import numpy as np

from nat_rewriter.model.flows import FLOW_FIELDS, TCP_STATES, Event, Present, Status
from nat_rewriter.model.slices import PortRange, Protocol, Slice
from nat_rewriter.model.sockets import SOCKET_FIELDS, SOCKET_STATES

PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58}
CLEAN = Status.SEEN_REPLY | Status.ASSURED | Status.CONFIRMED | Status.SRC_NAT_DONE | Status.DST_NAT_DONE
NATED = CLEAN | Status.SRC_NAT

SOFT, SOFT6, SERVER, CLIENT = "198.51.100.10", "2001:db8:5::10", "203.0.113.1", "10.0.0.2"
TCP_UDP = (Protocol.TCP, Protocol.UDP)
AMS = Slice("ams-1", ip_address(SOFT), (PortRange(9000, 9009),), (*TCP_UDP, Protocol.ICMP))
AMS6 = Slice("ams-6", ip_address(SOFT6), (PortRange(9000, 9009),), TCP_UDP)

End = tuple[str, int]


def halves(address: str) -> tuple[int, int]:
    number = int(ip_address(address))
    return number >> 64, number & ((1 << 64) - 1)


def flow(original: tuple[End, End], wire: End | None = None, **fields: Any) -> dict[str, Any]:
    """A flow from one end to another, that leaves as ``wire`` where that is given."""
    (src, sport), (dst, dport) = original
    wire_address, wire_port = wire or (src, sport)
    protocol = PROTOCOLS[fields.pop("protocol", "tcp")]
    echo = protocol in (1, 58)
    return {
        "orig_src": halves(src), "orig_sport": sport, "orig_dst": halves(dst), "orig_dport": sport if echo else dport,
        "reply_src": halves(dst), "reply_sport": wire_port if echo else dport,
        "reply_dst": halves(wire_address), "reply_dport": wire_port,
        "family": ip_address(src).version, "protocol": protocol,
        "status": int(NATED if wire else CLEAN), "tcp_state": TCP_STATES.index(fields.pop("state", "ESTABLISHED")),
        "present": int(Present.TCP_STATE | Present.TIMEOUT | Present.STATUS | Present.ID),
        "event": int(Event.DUMP), "timeout_s": 100, **fields,
    }  # fmt: skip


def socket(src: End, dst: End = ("0.0.0.0", 0), state: str = "ESTABLISHED", **fields: Any) -> dict[str, Any]:
    protocol = PROTOCOLS[fields.pop("protocol", "tcp")]
    return {
        "src": halves(src[0]), "sport": src[1], "dst": halves(dst[0]), "dport": dst[1],
        "family": ip_address(src[0]).version, "protocol": protocol, "state": SOCKET_STATES.index(state),
        "inode": 81233, **fields,
    }  # fmt: skip


def table(fields: list[Any], rows: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    made = np.zeros(len(rows), dtype=fields)
    for number, row in enumerate(rows):
        for name, value in row.items():
            made[number][name] = value
    return made


def flows(*rows: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Flow records; each gets the id 1000 + its place, unless it has one."""
    return table(FLOW_FIELDS, [{"id": 1000 + number, **row} for number, row in enumerate(rows)])


def sockets(*rows: dict[str, Any]) -> np.ndarray[Any, Any]:
    return table(SOCKET_FIELDS, list(rows))
