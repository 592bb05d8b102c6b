"""Slices as aligned blocks of ports: what a hash can hold, and a new flow finds with a look or two.

To look a packet up in an interval set of slices costs as much as all else that the kernel does with it; and to take one
of twenty thousand slices out of such a set takes the kernel 16 ms, for it looks through all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nat_rewriter.model.slices import PortRange, Protocol, Slice
from nat_rewriter.render.ownership import own_range, parts_of
from nat_rewriter.render.spelling import address_text

# Each an element of a range at most seven times at either end. The same for every policy, so that other slices are
# other elements and not other rules.
SIZES = (512, 64, 8, 1)


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of one size of an IP version."""

    family: int
    size: int

    @property
    def owned(self) -> str:
        """The name of the set of blocks that this host owns."""
        return f"owned{self.family}_{self.size}"

    @property
    def confine(self) -> str:
        """The name of the map from a block to where a flow from it may go."""
        return f"confine{self.family}_{self.size}"

    @property
    def first_port(self) -> str:
        """What gives the first port of the block that a packet comes from.

        It comes first in keys: behind another field, nft 1.0.6 lists a masked one so that it does not read it again.
        """
        return f"th sport & {0x10000 - self.size:#06x}" if self.size > 1 else "th sport"


def blocks_of(family: int) -> tuple[Blocks, ...]:
    """Return the sets of blocks of an IP version, in the order in which a packet asks them."""
    return tuple(Blocks(family, size) for size in SIZES)


def is_in_blocks(owned: Slice) -> bool:
    """Tell whether a slice is in blocks as a whole: they are for TCP and UDP alike."""
    return Protocol.TCP in owned.protocols and Protocol.UDP in owned.protocols


def block_elements(slices: Iterable[Slice], family: int) -> dict[str, dict[str, str]]:
    """Return first port . address of the blocks of slices, by set."""
    found: dict[str, dict[str, str]] = {blocks.owned: {} for blocks in blocks_of(family)}
    sets = dict(zip(SIZES, found.values(), strict=True))
    for owned in filter(is_in_blocks, slices):
        address = address_text(owned.address)
        for ports in owned.ranges:
            for size, first in _split(ports):
                sets[size][f"{first} . {address}"] = ""
    return found


def confining_elements(slices: Iterable[Slice], family: int) -> dict[str, dict[str, str]]:
    """Map the blocks of each range of slices to that range, by map."""
    found: dict[str, dict[str, str]] = {blocks.confine: {} for blocks in blocks_of(family)}
    maps = dict(zip(SIZES, found.values(), strict=True))
    for owned in filter(is_in_blocks, slices):
        address = address_text(owned.address)
        for ports in parts_of(owned):
            place = own_range(owned, ports, family)
            for size, first in _split(ports):
                maps[size][f"{first} . {address}"] = place
    return found


@functools.lru_cache(maxsize=1 << 14)
def _split(ports: PortRange) -> tuple[tuple[int, int], ...]:
    """Return size and first port of aligned blocks: as many of the largest size as lie in the range, then the rest."""
    return tuple(_largest_first(ports, SIZES))


def _largest_first(ports: PortRange, sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    if not sizes:
        return
    size = sizes[0]
    begin, end = -(-ports.first // size) * size, (ports.last + 1) // size * size
    if begin >= end:
        yield from _largest_first(ports, sizes[1:])
        return
    yield from ((size, first) for first in range(begin, end, size))
    if ports.first < begin:
        yield from _largest_first(PortRange(ports.first, begin - 1), sizes[1:])
    if end <= ports.last:
        yield from _largest_first(PortRange(end, ports.last), sizes[1:])
