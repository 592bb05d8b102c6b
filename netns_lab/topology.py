"""Who is connected to whom, with which addresses and routes::

    client                    egress                       upstream                     server
    10.0.0.2 … ── eth0/fish0 ── 10.0.0.1
                              198.51.100.10 (lo)
                              100.64.0.2 ── up0/down0 ── 100.64.0.1
                                                           203.0.113.254 ── srv0/eth0 ── 203.0.113.1 … .9

The egress host owns a slice of 198.51.100.10 and of 2001:db8:100::10. The upstream routes these addresses to it,
but drops what is not for one of its slices: in reality that goes to another host.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_interface
from pathlib import Path
from socket import AF_INET
from typing import Any

from nat_rewriter.kernel.netns import entered, namespace_path
from nat_rewriter.model.slices import Address

CLIENT_LINK = "fish0"
UPLINK = "up0"
DOWNLINK = "down0"
SERVER_LINK = "srv0"
CLIENT_NETWORKS = {4: "10.0.0.0/24", 6: "2001:db8:10::/64"}
SOFT_ADDRESS = "198.51.100.10"
SOFT_ADDRESS_6 = "2001:db8:100::10"
CLIENT = "10.0.0.2"
CLIENT_6 = "2001:db8:10::2"
SERVER = "203.0.113.1"
SERVER_6 = "2001:db8:203::1"
MAX_CLIENTS = 252

_INDEX = {CLIENT_LINK: 11, UPLINK: 12, SERVER_LINK: 13}

_IPV4_SYSCTLS = {"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/default/rp_filter": "0"}
# Without duplicate address detection an IPv6 address can be used at once.
_IPV6_SYSCTLS = {"net/ipv6/conf/all/accept_dad": "0", "net/ipv6/conf/default/accept_dad": "0"}
HOST_SYSCTLS = {**_IPV4_SYSCTLS, **_IPV6_SYSCTLS, "net/ipv4/ping_group_range": "0 0"}
ROUTER_SYSCTLS = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}


def set_sysctls(values: Mapping[str, str]) -> None:
    """Write sysctls of the namespace this thread is in; names with slashes, below /proc/sys."""
    for name, value in values.items():
        Path("/proc/sys", name).write_text(value)


class Wiring:
    """Changes links, addresses and routes in the namespace that this thread is in."""

    def __init__(self, route: Any) -> None:
        self._route = route

    def cable(self, name: str, peer: str, peer_namespace: str, index: int = 0, mac: str | None = None) -> None:
        """Make a veth pair whose other end is in another namespace; with an index and a hardware address, if given.

        The ends get different indexes. With equal ones the kernel (linkwatch_urgent_event) takes them for physical
        links, and tells IPv6 up to a second late that the cable is there.
        """
        descriptor = os.open(namespace_path(peer_namespace), os.O_RDONLY | os.O_CLOEXEC)
        try:
            far_end = {"ifname": peer, "net_ns_fd": descriptor}
            own = {"address": mac} if mac else {}
            self._route.link("add", ifname=name, index=index or _INDEX[name], kind="veth", peer=far_end, **own)
        finally:
            os.close(descriptor)

    def interface(self, name: str, addresses: Iterable[str]) -> None:
        """Give an interface its addresses (with prefix length), usable at once, and set it up."""
        index = self._route.link_lookup(ifname=name)[0]
        self._route.link("set", index=index, state="up")
        for text in addresses:
            address = ip_interface(text)
            self._route.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)

    def bridge(self, name: str) -> None:
        """Make a bridge."""
        self._route.link("add", ifname=name, kind="bridge")

    def join(self, name: str, bridge: str) -> None:
        """Make an interface a port of a bridge."""
        index, master = (self._route.link_lookup(ifname=each)[0] for each in (name, bridge))
        self._route.link("set", index=index, master=master)

    def route(self, destination: str, gateway: str, table: int = 254) -> None:
        """Route a network, or ``default``, to a gateway."""
        family = 10 if ":" in gateway else 2
        self._route.route("add", dst=destination, gateway=gateway, family=family, table=table)

    def rule(self, table: int, priority: int = 1000, family: int = AF_INET, **match: Any) -> None:
        """Route packets of a network (``src``), or with a mark (``fwmark``), by a table of their own."""
        self._route.rule("add", table=table, priority=priority + table, family=family, **match)


@contextmanager
def wiring(namespace: str, sysctls: Mapping[str, str] = HOST_SYSCTLS) -> Iterator[Wiring]:
    """Enter a namespace to wire it: sysctls first, since interfaces copy them when they appear."""
    from pyroute2 import IPRoute

    with entered(namespace):
        set_sysctls(sysctls)
        with IPRoute() as route:
            yield Wiring(route)


def build(names: Mapping[str, str], soft: Iterable[Address], clients: int) -> None:
    """Wire the four namespaces of a lab. ``names``: host -> namespace; ``soft``: addresses of the slices."""
    soft_addresses = sorted({str(address) for address in soft})
    for host in ("client", "server"):  # the default sysctls have to be there before the cables arrive
        with wiring(names[host]):
            pass
    with wiring(names["upstream"], HOST_SYSCTLS | ROUTER_SYSCTLS) as upstream:
        upstream.interface("lo", [])
        upstream.cable(SERVER_LINK, "eth0", names["server"])
        upstream.interface(SERVER_LINK, ["203.0.113.254/24", "2001:db8:203::fe/64"])
    _wire_egress(names, soft_addresses)
    with wiring(names["upstream"], {}) as upstream:
        upstream.interface(DOWNLINK, ["100.64.0.1/30", "2001:db8:fffe::1/64"])
        for address in soft_addresses:
            upstream.route(address, "2001:db8:fffe::2" if ":" in address else "100.64.0.2")
    _wire_ends(names, clients)


def _wire_egress(names: Mapping[str, str], soft_addresses: list[str]) -> None:
    with wiring(names["egress"], HOST_SYSCTLS | ROUTER_SYSCTLS) as egress:
        egress.interface("lo", soft_addresses)
        egress.cable(CLIENT_LINK, "eth0", names["client"])
        egress.cable(UPLINK, DOWNLINK, names["upstream"])
        egress.interface(CLIENT_LINK, ["10.0.0.1/24", "2001:db8:10::1/64"])
        egress.interface(UPLINK, ["100.64.0.2/30", "2001:db8:fffe::2/64"])
        egress.route("default", "100.64.0.1")
        egress.route("default", "2001:db8:fffe::1")


def _wire_ends(names: Mapping[str, str], clients: int) -> None:
    own = [address for number in range(2, 2 + clients) for address in client_addresses(number)]
    servers = [
        address for number in range(1, 10) for address in (f"203.0.113.{number}/24", f"2001:db8:203::{number}/64")
    ]
    ends = (
        ("client", own, ("10.0.0.1", "2001:db8:10::1")),
        ("server", servers, ("203.0.113.254", "2001:db8:203::fe")),
    )
    for host, addresses, gateways in ends:
        with wiring(names[host], {}) as end:
            end.interface("lo", [])
            end.interface("eth0", addresses)
            for gateway in gateways:
                end.route("default", gateway)


def client_addresses(number: int) -> tuple[str, str]:
    """Return the IPv4 and IPv6 address of a client, with prefix lengths; the first client is number 2."""
    return f"10.0.0.{number}/24", f"2001:db8:10::{number:x}/64"
