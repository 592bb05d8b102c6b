"""Who holds which block -> nft text: tables by which packets for shared addresses get to the host that owns the port.

One of family netdev, before the IP layer, hands packets over as they are: no route is looked up, conntrack never sees
them. Of a datagram in fragments only one has ports: all of them go to one host, by a hash, which puts them together and
hands over the whole: a table of family ip or ip6. The rules stay, whoever holds what; elements change.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nat_rewriter.model.inbound import Holders, Inbound
from nat_rewriter.model.pools import Block, Pool
from nat_rewriter.model.slices import Address, Protocol
from nat_rewriter.render.spelling import IpVersion, address_text, concat, ip_word
from nat_rewriter.render.table import templates

SLOTS = 256
TABLE_FAMILIES = ("netdev", "ip", "ip6")

_A_STATEMENT = 5000  # elements: nft's parser slows down on longer ones
_PRIORITY = -200  # before the ingress chain of [route]
_TOGETHER_PRIORITY = -350  # after NF_IP_PRI_CONNTRACK_DEFRAG (-400), before raw (-300) and conntrack (-200)
_TOGETHER = "0x6e617463"
_SEED = "0x6e617463"  # without one each rule would hash in its own way
_ERRORS = {
    4: "destination-unreachable, time-exceeded, parameter-problem",
    6: "destination-unreachable, packet-too-big, time-exceeded, parameter-problem",
}
_DATAGRAM = {4: "ip saddr . ip daddr . ip id", 6: "ip6 saddr . ip6 daddr . frag id"}
_FRAGMENTED = {4: "ip frag-off & 0x3fff != 0", 6: "exthdr frag exists"}
_ICMP_ERROR_BITS = 64  # of the header of an ICMP error; then comes the packet it is about
_IP_BITS, _PROTOCOL_BIT = {4: 160, 6: 320}, {4: 72, 6: 48}


class Size(NamedTuple):
    """The shared addresses whose blocks have one size, and the mask that gives the first port of one."""

    addresses: str
    mask: str


@dataclass(frozen=True, slots=True)
class Family(IpVersion):
    """What the tables have for one IP version. ``echo`` is for the addresses whose echo ids are shared as ports are."""

    addresses: str
    sizes: tuple[Size, ...]
    echo: tuple[Size, ...]

    @property
    def ttl(self) -> str:
        """The field that each hop makes smaller."""
        return "hoplimit" if self.number == 6 else "ttl"

    @property
    def icmp_number(self) -> int:
        """The protocol's number."""
        return 58 if self.number == 6 else 1

    @property
    def errors(self) -> str:
        """The types of ICMP errors that senders are told."""
        return _ERRORS[self.number]

    @property
    def datagram(self) -> str:
        """What all fragments of a datagram have in common."""
        return _DATAGRAM[self.number]

    @property
    def fragmented(self) -> str:
        """What tells a fragment."""
        return _FRAGMENTED[self.number]

    @property
    def inner_protocol(self) -> int:
        """In bits from the ICMP header on: the protocol of the packet in an error."""
        return _ICMP_ERROR_BITS + _PROTOCOL_BIT[self.number]

    @property
    def inner_port(self) -> int:
        """The same, of its source port; the packet has no IP options or extension headers."""
        return _ICMP_ERROR_BITS + _IP_BITS[self.number]

    @property
    def inner_id(self) -> int:
        """The same, of its echo id."""
        return self.inner_port + 32


def inbound_table_name(table: str) -> str:
    """Return the name of the tables that the agent has for inbound packets beside the controller's."""
    return f"{table}_inbound"


def render_inbound(table: str, pools: Sequence[Pool], inbound: Inbound, *, host: bool) -> str:
    """Return the tables, with nothing in them yet.

    With ``host`` they are those of a host of the fleet, which puts fragments together and is handed packets; without,
    those of a router before it.
    """
    families = [_family(pools, number) for number in (4, 6) if addresses_of(pools, number)]
    arrival = inbound.devices if host else inbound.arrival
    words = {"device": f'"{inbound.device}"', "arrival": [f'"{name}"' for name in arrival]}
    words |= {"table": inbound_table_name(table), "together": _TOGETHER, "seed": _SEED}
    numbers = {"slots": SLOTS, "priority": _PRIORITY, "together_priority": _TOGETHER_PRIORITY}
    return templates().get_template("inbound.nft.j2").render(**words, **numbers, families=families, host=host)


def addresses_of(pools: Iterable[Pool], family: int) -> list[Address]:
    """Return the shared addresses of an IP version."""
    return [address for pool in pools for address in pool.addresses if address.version == family]


def inbound_elements(
    pools: Sequence[Pool], holders: Holders, host: str | None, owners: Collection[str] | None = None
) -> dict[str, dict[str, str]]:
    """Return what belongs into the sets and maps, for a host of the fleet or, with None, for a router.

    With ``owners`` only the blocks of these hosts are among it.
    """
    found: dict[str, dict[str, str]] = {}
    if host is not None:
        found["peers"] = {peer.link: "" for peer in holders.peers.values() if peer.host != host}
    for number in (4, 6):
        if addresses_of(pools, number):
            found |= _of_family(holders, number, host, holders.held.keys() if owners is None else owners)
    return found


def block_key(block: Block) -> str:
    """Return a block as the tables look it up."""
    return concat(block.address, block.first)


def _of_family(
    holders: Holders, number: int, host: str | None, owners: Collection[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    places = {
        peer.host: address_text(address)
        for peer in holders.peers.values()
        if (address := peer.address(number)) is not None
    }
    held = ((block, owner) for owner in owners for block in holders.held.get(owner, ()))
    blocks = [(block, owner) for block, owner in held if block.address.version == number]
    slots = _slots(frozenset(places))
    others = {block_key(block): places[owner] for block, owner in blocks if owner != host and owner in places}
    yield from ((f"owners{number}", others), (f"senders{number}", others))
    yield f"slots{number}", {f"0x{slot:08x}": places[owner] for slot, owner in slots.items() if owner != host}
    if host is not None:
        yield f"own{number}", {block_key(block): "" for block, owner in blocks if owner == host}
        yield f"mine{number}", {f"0x{slot:08x}": "" for slot, owner in slots.items() if owner == host}


@functools.lru_cache(maxsize=4)
def _slots(hosts: frozenset[str]) -> dict[int, str]:
    """Return whose each slot is: the same on every host, and no other slot moves when a host comes or goes (HRW)."""
    ordered = sorted(hosts)
    return {slot: max(ordered, key=functools.partial(_weight, slot)) for slot in range(SLOTS)} if ordered else {}


def _weight(slot: int, host: str) -> bytes:
    return hashlib.blake2b(f"{slot} {host}".encode(), digest_size=8).digest()


def inbound_changes(table: str, pools: Sequence[Pool], before: Holders, after: Holders, host: str | None) -> str:
    """Return the transaction that makes one content of the tables the other; empty where they are equal.

    The link-layer addresses of hosts that fell silent stay: they go on handing packets over.
    """
    name = inbound_table_name(table)
    changed = after.changed_since(before)
    all_had, all_has = (inbound_elements(pools, holders, host, changed) for holders in (before, after))
    removals, additions = list[str](), list[str]()
    for which, has in sorted(all_has.items()):
        had = all_had[which]
        gone = [key for key, value in had.items() if has.get(key) != value and which != "peers"]
        come = [f"{key} : {value}" if value else key for key, value in has.items() if had.get(key) != value]
        for family in _families_with(which, host=host is not None):
            removals += _statements(f"delete element {family} {name} {which}", gone)
            additions += _statements(f"add element {family} {name} {which}", come)
    return "\n".join([*removals, *additions])


def _statements(verb: str, elements: Sequence[str]) -> Iterator[str]:
    for start in range(0, len(elements), _A_STATEMENT):
        yield f"{verb} {{ {', '.join(elements[start : start + _A_STATEMENT])} }}"


def router_text(table: str, pools: Sequence[Pool], holders: Holders, inbound: Inbound) -> str:
    """Return an nft file by which a router on the segment of the fleet hands packets to their owners."""
    name = inbound_table_name(table)
    rules = render_inbound(table, pools, inbound, host=False)
    filled = inbound_changes(table, pools, Holders(), holders, None)
    return f"table netdev {name}\ndelete table netdev {name}\n\n{rules}\n{filled}\n"


def given_text(table: str, given: Mapping[Block, Address], seconds: int) -> str:
    """Return the transaction by which packets for blocks that were given away are handed on to their new hosts."""
    name = inbound_table_name(table)
    lines = []
    for block, address in given.items():
        target = f"element netdev {name} given{block.address.version}"
        key, data = block_key(block), address_text(address)
        # Added first, it can be deleted whether or not it was there.
        lines += [f"add {target} {{ {key} : {data} }}", f"delete {target} {{ {key} }}"]
        lines.append(f"add {target} {{ {key} timeout {seconds}s : {data} }}")
    return "\n".join(lines)


def _families_with(which: str, *, host: bool) -> tuple[str, ...]:
    """Return the families of the tables that have a set or map."""
    if not host or not which.startswith(("owners", "senders")):
        return ("netdev",)
    return "netdev", ip_word(int(which[-1]))


def _family(pools: Sequence[Pool], number: int) -> Family:
    of_family = [pool for pool in pools if addresses_of([pool], number)]
    echo = [pool for pool in of_family if Protocol.ICMP in pool.protocols]
    return Family(number, _listed(addresses_of(pools, number)), _sizes(of_family, number), _sizes(echo, number))


def _sizes(pools: Sequence[Pool], number: int) -> tuple[Size, ...]:
    sizes = sorted({pool.slice_size for pool in pools})
    by_size = {size: [pool for pool in pools if pool.slice_size == size] for size in sizes}
    return tuple(Size(_listed(addresses_of(some, number)), f"{0x10000 - size:#06x}") for size, some in by_size.items())


def _listed(addresses: Iterable[Address]) -> str:
    return ", ".join(map(address_text, addresses))
