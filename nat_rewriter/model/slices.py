"""Slices: the ports of a shared address that this host owns."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

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


@dataclass(frozen=True, slots=True)
class Slice:
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
        return subtract_ranges(self.ranges, self.socket_ranges)

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
    left = list(ranges)
    for hole in taken:
        left = [piece for whole in left for piece in _cut(whole, hole)]
    return tuple(sorted(left))


def _cut(whole: PortRange, hole: PortRange) -> Iterator[PortRange]:
    if not whole.overlaps(hole):
        yield whole
        return
    if whole.first < hole.first:
        yield PortRange(whole.first, hole.first - 1)
    if hole.last < whole.last:
        yield PortRange(hole.last + 1, whole.last)
