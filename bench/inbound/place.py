"""A host that gets packets for a shared address, and the host beside it that owns all their ports::

    sender ── in0 host out0 ── owner

Sender and owner stay the same whatever is measured: prepared frames at one end, a counter that drops at the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from bench.coexist.load import packets
from bench.packets.place import SINK, NotMeasured, taken
from nat_rewriter.kernel.inbound import link_address
from nat_rewriter.model.inbound import Holders, Inbound, Peer
from nat_rewriter.model.pools import Block, Pool
from nat_rewriter.model.slices import PortRange
from nat_rewriter.render.inbound import inbound_changes, render_inbound
from netns_lab.host import Host
from netns_lab.segment import cable, configure, hosts_of_their_own

FLOWS, SLICE_SIZE = 1024, 64
PORTS = PortRange(1024, 65535)
BLOCKS_AN_ADDRESS = len(PORTS) // SLICE_SIZE
_FIRST_SHARED = {4: ip_address("198.51.100.1"), 6: ip_address("2001:db8:100::1")}
_OWNER = {4: "192.0.2.12", 6: "2001:db8:ffff::c"}
_OWN = {4: "192.0.2.11/24", 6: "2001:db8:ffff::b/64"}
_SENDER = {4: "203.0.113.1", 6: "2001:db8:203::1"}
_SHARED_NETWORK = {4: "198.51.100.0/24", 6: "2001:db8:100::/64"}


@dataclass(frozen=True, slots=True)
class Place:
    """A host that is ready to be measured, and the blocks of ports that others have."""

    sender: Host
    host: Host
    owner: Host
    family: int
    blocks: tuple[Block, ...]
    link: str  # of the host, towards the sender

    def send(self, rounds: int, *, expected: bool = True) -> float:
        """Send packets of flows over all blocks; return the nanoseconds of each."""
        chosen = [self.blocks[number * len(self.blocks) // FLOWS] for number in range(FLOWS)]
        lines = [
            f"{_SENDER[self.family]} {20_000 + number} {block.address} {block.first + number % SLICE_SIZE}\n"
            for number, block in enumerate(chosen)
        ]
        before = taken(self.owner)
        spent = packets(self.sender, flows="".join(lines), device="to0", gateway=self.link, rounds=rounds, cpu=0)
        arrived = taken(self.owner) - before
        if expected and arrived < rounds * FLOWS:
            raise NotMeasured(f"{arrived} of {rounds * FLOWS} packets arrived")
        return spent

    def hand_over(self) -> None:
        """Let the host hand packets over, with all blocks another's."""
        addresses = tuple(dict.fromkeys(block.address for block in self.blocks))
        pools = [Pool("shared", addresses, PORTS, SLICE_SIZE)]
        owner = Peer("owner", (ip_address(_OWNER[self.family]),), "02:00:00:00:00:01")
        holders = Holders({"owner": frozenset(self.blocks)}, {"owner": owner})
        inbound = Inbound("out0", (), ("in0",))
        text = render_inbound("natctl", pools, inbound, host=True)
        self.host.nft(f"{text}\n{inbound_changes('natctl', pools, Holders(), holders, 'host')}")

    def drop(self) -> None:
        """Let the host drop packets as soon as they are there: what is left is the sender's share."""
        self.host.nft(
            "table netdev floor { chain floor { type filter hook ingress device in0 priority 0; policy drop; }; }"
        )

    def track(self) -> None:
        """Let conntrack see what the host forwards, as it does where anything is rewritten."""
        self.host.nft("table inet track { chain track { type filter hook forward priority 0; ct state new accept; }; }")


@contextmanager
def place(family: int, count: int) -> Iterator[Place]:
    """Make the three, with a route over the host; the blocks are those of as many addresses as that takes."""
    with ExitStack() as resources:
        sender, host, owner = hosts_of_their_own(resources, "sender", "host", "owner")
        cable(sender, "to0", host, "in0")
        cable(host, "out0", owner, "from0")
        configure(sender, "to0")
        configure(host, "in0")
        configure(host, "out0", _OWN[family])
        configure(owner, "from0")
        with owner.enter():
            link = link_address("from0")
        with host.enter():
            own_link = link_address("in0")
        host.run(["ip", "neigh", "replace", _OWNER[family], "lladdr", link, "dev", "out0", "nud", "permanent"])
        host.run(["ip", "route", "add", _SHARED_NETWORK[family], "via", _OWNER[family]])
        owner.nft(SINK.format("from0", "counter name taken drop"))
        yield Place(sender, host, owner, family, tuple(_blocks(family, count)), own_link)


def _blocks(family: int, count: int) -> Iterator[Block]:
    for number in range(count):
        address: IPv4Address | IPv6Address = _FIRST_SHARED[family] + number // BLOCKS_AN_ADDRESS
        yield Block(address, PORTS.first + number % BLOCKS_AN_ADDRESS * SLICE_SIZE, SLICE_SIZE)
