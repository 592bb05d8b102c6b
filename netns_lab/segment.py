"""A fleet on one segment, whose upstream deals packets for the shared addresses out to its hosts, one after the other::

    client ── host 0 ──┐
              host 1 ──┼── (bridge) upstream ── core ── server
              host 2 ──┘

All hosts have the shared addresses on lo. The way from core to server is narrow, so that path MTU discovery has
something to discover.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from netns_lab import namespaces
from netns_lab.host import Host
from netns_lab.topology import set_sysctls

SHARED, SHARED_6 = "198.51.100.10", "2001:db8:100::10"
SERVER, SERVER_6 = "203.0.113.1", "2001:db8:203::1"
CLIENT, CLIENT_6 = "10.0.0.2", "2001:db8:10::2"
SEGMENT_LINK = "seg0"
NARROW_MTU = 1400
_SYSCTLS = {
    "net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/default/rp_filter": "0", "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/accept_dad": "0", "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/all/forwarding": "1", "net/ipv4/ping_group_range": "0 0", "net/ipv4/icmp_ratelimit": "0",
    "net/ipv6/icmp/ratelimit": "0",
}  # fmt: skip


def peer_address(number: int) -> str:
    """Return the IPv4 address that a host has on the segment."""
    return f"192.0.2.{11 + number}"


def peer_address_6(number: int) -> str:
    """Return the IPv6 address that a host has on the segment."""
    return f"2001:db8:ffff::{11 + number:x}"


class Segment:
    """The hosts of the lab; :func:`segment` makes it."""

    def __init__(self, resources: ExitStack, hosts: int) -> None:
        names = ["client", "upstream", "core", "server", *(f"h{number}" for number in range(hosts))]
        self.client, self.upstream, self.core, self.server, *self.hosts = hosts_of_their_own(resources, *names)
        self._wire()

    def deal_to(self, numbers: Sequence[int]) -> None:
        """Let the upstream send packets for the shared addresses to these hosts in turn, whatever they carry."""
        turns = f"numgen inc mod {len(numbers)}"
        four = ", ".join(f"{turn}: {peer_address(number)}" for turn, number in enumerate(numbers))
        six = ", ".join(f"{turn}: {peer_address_6(number)}" for turn, number in enumerate(numbers))
        self.upstream.nft(
            "add table netdev deal\ndelete table netdev deal\n"
            'table netdev deal { chain deal { type filter hook ingress device "core0" priority 0; policy accept;\n'
            f'ip daddr {SHARED} fwd ip to {turns} map {{ {four} }} device "br0"\n'
            f'ip6 daddr {SHARED_6} fwd ip6 to {turns} map {{ {six} }} device "br0"\n}}\n}}'
        )

    def _wire(self) -> None:
        _ip(self.upstream, "link add br0 type bridge", "link set br0 up", "addr add 192.0.2.1/24 dev br0")
        _ip(self.upstream, "addr add 2001:db8:ffff::1/64 dev br0")
        for number, host in enumerate(self.hosts):
            cable(host, SEGMENT_LINK, self.upstream, f"p{number}")
            _ip(self.upstream, f"link set p{number} up master br0")
            configure(host, SEGMENT_LINK, f"{peer_address(number)}/24", f"{peer_address_6(number)}/64")
            configure(host, "lo", SHARED, SHARED_6)
            _ip(host, "route add default via 192.0.2.1", "route add default via 2001:db8:ffff::1")
        cable(self.client, "eth0", self.hosts[0], "fish0")
        configure(self.client, "eth0", f"{CLIENT}/24", f"{CLIENT_6}/64")
        configure(self.hosts[0], "fish0", "10.0.0.1/24", "2001:db8:10::1/64")
        _ip(self.client, "route add default via 10.0.0.1", "route add default via 2001:db8:10::1")
        cable(self.upstream, "core0", self.core, "up0")
        configure(self.upstream, "core0", "100.64.0.1/30", "2001:db8:fffe::1/64")
        configure(self.core, "up0", "100.64.0.2/30", "2001:db8:fffe::2/64")
        _ip(self.upstream, "route add 203.0.113.0/24 via 100.64.0.2")
        _ip(self.upstream, "route add 2001:db8:203::/64 via 2001:db8:fffe::2")
        cable(self.core, "srv0", self.server, "eth0")
        configure(self.core, "srv0", "203.0.113.254/24", "2001:db8:203::fe/64")
        configure(self.server, "eth0", f"{SERVER}/24", f"{SERVER_6}/64")
        _ip(self.core, *(f"route add {server} dev srv0 mtu {NARROW_MTU}" for server in (SERVER, SERVER_6)))
        _ip(self.core, "route add default via 100.64.0.1")
        _ip(self.core, "route add default via 2001:db8:fffe::1")
        _ip(self.server, "route add default via 203.0.113.254", "route add default via 2001:db8:203::fe")


@contextmanager
def segment(hosts: int = 3) -> Iterator[Segment]:
    """Make a fleet on one segment; it is taken away whole. At first the upstream deals to all hosts."""
    with ExitStack() as resources:
        made = Segment(resources, hosts)
        made.deal_to(range(hosts))
        yield made


def hosts_of_their_own(resources: ExitStack, *names: str) -> list[Host]:
    """Make routers that are connected to nothing yet; they end with ``resources``."""
    lab = namespaces.unique_name("seg")
    spaces = [namespaces.namespace_name(lab, name) for name in names]
    for space in spaces:
        namespaces.create(space)
        resources.callback(namespaces.delete, space)
    inner = resources.enter_context(ExitStack())  # what is opened in the hosts ends before them
    hosts = [Host(space, inner) for space in spaces]
    for host in hosts:
        with host.enter():
            set_sysctls(_SYSCTLS)
    return hosts


def cable(host: Host, name: str, other: Host, far: str) -> None:
    """Connect two hosts by a pair of devices."""
    # Different indexes at both ends: with equal ones the kernel tells late that the cable is there.
    index = 100 + secrets.randbelow(1 << 20)
    _ip(host, f"link add {name} index {index} type veth peer name {far} netns {other.name}")


def configure(host: Host, device: str, *addresses: str) -> None:
    """Set a device up, with addresses and their prefix lengths."""
    _ip(host, f"link set {device} up", *(f"addr add {address} dev {device}" for address in addresses))


def _ip(host: Host, *commands: str) -> None:
    host.run(["ip", "-batch", "-"], input="\n".join(commands))
