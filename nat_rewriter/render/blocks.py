"""Slices as aligned blocks of ports: what a hash can hold, and a new flow finds with a look or two.

To look a packet up in an interval set of slices costs as much as all else that the kernel does with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nat_rewriter.model.slices import PortRange, Protocol, Slice
from nat_rewriter.render.spelling import address_text

# Each an element of a slice at most seven times at either end; what is left over is for the interval set. The same
# for every policy, so that other slices are other elements and not other rules.
SIZES = (512, 64, 8)


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of one size: the name of their set, and the mask that gives the first port of a block."""

    name: str
    size: int

    @property
    def mask(self) -> str:
        """What ``th sport & mask`` needs."""
        return f"{0x10000 - self.size:#06x}"


def blocks_of(family: int) -> tuple[Blocks, ...]:
    """Return the sets of blocks of an IP version, in the order in which a packet asks them."""
    return tuple(Blocks(f"blocks{family}_{size}", size) for size in SIZES)


def block_elements(slices: Sequence[Slice], family: int) -> dict[str, dict[str, str]]:
    """Return address . first port of the blocks that lie in slices for both TCP and UDP, by set."""
    found: dict[str, dict[str, str]] = {blocks.name: {} for blocks in blocks_of(family)}
    sets = dict(zip(SIZES, found.values(), strict=True))
    for owned in slices:
        if Protocol.TCP in owned.protocols and Protocol.UDP in owned.protocols:
            address = address_text(owned.address)
            for ports in owned.ranges:
                for size, first in _split(ports, SIZES):
                    sets[size][f"{address} . {first}"] = ""
    return found


def _split(ports: PortRange, sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield size and first port of aligned blocks: as many of the largest size as lie in the range, then what is left.

    Ranges too small for a block, and what is left at the ends, yield nothing.
    """
    if not sizes:
        return
    size = sizes[0]
    begin, end = -(-ports.first // size) * size, (ports.last + 1) // size * size
    if begin >= end:
        yield from _split(ports, sizes[1:])
        return
    yield from ((size, first) for first in range(begin, end, size))
    if ports.first < begin:
        yield from _split(PortRange(ports.first, begin - 1), sizes[1:])
    if end <= ports.last:
        yield from _split(PortRange(end, ports.last), sizes[1:])
