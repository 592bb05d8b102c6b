"""A network namespace in which conntrack sees rewriting, zones and marks, and entries for its table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

from own_network import own_network, run, set_sysctl

from nat_rewriter.kernel import conntrack
from nat_rewriter.model.tuples import FlowTuple

CLIENT, SOFT, SERVER = "10.0.0.2", "198.51.100.10", "203.0.113.1"
CLIENT6, SOFT6, SERVER6 = "fd00::2", "2001:db8::10", "2001:db8:1::1"

# Ports of the server decide what happens to a flow.
RULES = f"""
table inet traffic {{
    chain zones {{
        type filter hook output priority -300
        th dport 5005 ct zone set 5
        th dport 5006 ct original zone set 6
        th dport 5007 ct reply zone set 7
    }}
    chain marks {{
        type filter hook output priority 0
        th dport 7007 ct mark set 0x7007
        ct state new counter
    }}
    chain rewrite {{
        type nat hook postrouting priority 100
        ip saddr {CLIENT} meta l4proto {{ tcp, udp }} th dport 443 snat ip to {SOFT}:9000-9009
        ip saddr {CLIENT} meta l4proto icmp snat ip to {SOFT}:9000-9009
        ip6 saddr {CLIENT6} meta l4proto {{ tcp, udp }} th dport 443 snat ip6 to [{SOFT6}]:9000-9009
    }}
}}
"""


@contextmanager
def tracked_network() -> Iterator[None]:
    """Be in a namespace in which packets are tracked, counted and stamped."""
    addresses = [f"{address}/32" for address in (CLIENT, SOFT, SERVER)]
    addresses += [f"{address}/128" for address in (CLIENT6, SOFT6, SERVER6)]
    with own_network(*addresses):
        run("nft -f -", RULES)
        set_sysctl("net.netfilter.nf_conntrack_acct", 1)
        set_sysctl("net.netfilter.nf_conntrack_timestamp", 1)
        yield


def flow(protocol: str, src: str, sport: int, dst: str, dport: int) -> FlowTuple:
    return FlowTuple(protocol, ip_address(src), sport, ip_address(dst), dport)


def insert_many(count: int, first_port: int = 1024) -> None:
    for port in range(first_port, first_port + count):
        conntrack.insert_flow(flow("tcp", CLIENT, port, SERVER, 443), 600)
