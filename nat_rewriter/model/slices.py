"""Slices: the ports of a shared address that this host owns.

There may be ten thousand: a named tuple is made in a third of the time that a frozen dataclass takes.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

Address = IPv4Address | IPv6Address


class Protocol(enum.Enum):
    """A protocol whose ports, or echo ids, a slice holds. ICMP stands for ICMPv6 in an IPv6 slice."""

    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """An inclusive range of ports or echo ids."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __contains__(self, port: object) -> bool:
        return isinstance(port, int) and self.first <= port <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    def overlaps(self, other: PortRange) -> bool:
        """Tell whether the two ranges share a port."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True, slots=True)
class PortSet:
    """A port set of RFC 7597, section 5.1: offset (a bits), PSID length (k bits) and PSID."""

    offset: int
    length: int
    psid: int

    def ranges(self) -> tuple[PortRange, ...]:
        """Return the port ranges of the set, ascending; with offset > 0 the ports below 2**(16-offset) are left out."""
        contiguous_bits = 16 - self.offset - self.length
        size = 1 << contiguous_bits
        first_block = 1 if self.offset else 0
        blocks = range(first_block, 1 << self.offset)
        starts = ((block << (16 - self.offset)) | (self.psid << contiguous_bits) for block in blocks)
        return tuple(PortRange(start, start + size - 1) for start in starts)


class Slice(NamedTuple):
    """An address and the port ranges of it that this host owns, for the given protocols.

    ``socket_ranges`` are the part kept for sockets (only under ``coexist = "split"``); ``ranges`` contains them.
    """

    name: str
    address: Address
    ranges: tuple[PortRange, ...]
    protocols: tuple[Protocol, ...]
    socket_ranges: tuple[PortRange, ...] = ()

    @property
    def rewrite_ranges(self) -> tuple[PortRange, ...]:
        """The ranges that packet rewriting may use: all ranges less those kept for sockets."""
        return subtract_ranges(self.ranges, self.socket_ranges) if self.socket_ranges else self.ranges

    def owns(self, port: int) -> bool:
        """Tell whether the port, or echo id, lies in the slice."""
        return any(port in owned for owned in self.ranges)


def merge_ranges(ranges: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """Return the same ports as ascending ranges that neither overlap nor touch."""
    merged: list[PortRange] = []
    for current in sorted(ranges):
        if merged and current.first <= merged[-1].last + 1:
            merged[-1] = PortRange(merged[-1].first, max(merged[-1].last, current.last))
        else:
            merged.append(current)
    return tuple(merged)


def subtract_ranges(ranges: Iterable[PortRange], taken: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """Return the ports of ``ranges`` that are not in ``taken``, as ascending ranges."""
    holes = merge_ranges(taken)
    ends = [hole.last for hole in holes]
    return tuple(piece for whole in sorted(ranges) for piece in _cut(whole, holes[bisect_left(ends, whole.first) :]))


def _cut(whole: PortRange, holes: Iterable[PortRange]) -> Iterator[PortRange]:
    """Yield what is left of a range by ascending holes, none of which ends before it."""
    first = whole.first
    for hole in holes:
        if hole.first > whole.last:
            break
        if first < hole.first:
            yield PortRange(first, hole.first - 1)
        first = hole.last + 1
    if first <= whole.last:
        yield PortRange(first, whole.last)
