"""Lists of port ranges in a configuration, and where two claims to ports meet."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from nat_rewriter.config import values
from nat_rewriter.config.section import Section
from nat_rewriter.model.slices import PortRange, merge_ranges


class Overlap(NamedTuple):
    """Ports that two claimants have in common, by the claimants' positions; ``earlier`` < ``later``."""

    earlier: int
    later: int
    ports: PortRange


class Bounds(NamedTuple):
    """The ports that a list may name, and whose they are, in words."""

    ranges: Sequence[PortRange]
    where: str


def read_ranges(section: Section, key: str, bounds: Bounds | None = None) -> tuple[PortRange, ...]:
    """Return the merged ranges of a key; ranges that overlap each other or leave the bounds are problems."""
    items = section.many(key, values.port_range)
    for overlap in overlaps((ports, index) for index, ports in items.items()):
        section.refuse(key, f"ranges that do not overlap; {overlap.ports} is in an earlier one as well", overlap.later)
    for index, ports in items.items():
        if bounds is not None and not _within(ports, bounds.ranges):
            section.refuse(key, f"ports {bounds.where}: {ranges_text(bounds.ranges)}", index)
    return merge_ranges(items.values())


def _within(ports: PortRange, allowed: Sequence[PortRange]) -> bool:
    """Tell whether one of the allowed ranges, which are merged and ascending, holds all the ports."""
    position = bisect_right(allowed, ports.first, key=lambda owned: owned.first)
    return position > 0 and ports.last <= allowed[position - 1].last


def overlaps(claims: Iterable[tuple[PortRange, int]]) -> Iterator[Overlap]:
    """Yield an overlap for each claim that shares ports with one that starts before it."""
    widest: tuple[PortRange, int] | None = None
    for ports, claimant in sorted(claims):
        if widest is not None and ports.overlaps(widest[0]):
            shared = PortRange(ports.first, min(ports.last, widest[0].last))
            yield Overlap(min(claimant, widest[1]), max(claimant, widest[1]), shared)
        if widest is None or ports.last > widest[0].last:
            widest = (ports, claimant)


def ranges_text(ranges: Sequence[PortRange]) -> str:
    """Return the first few ranges as text."""
    shown = ", ".join(str(ports) for ports in islice(ranges, 4))
    return f"{shown}, …" if len(ranges) > 4 else shown
