"""Which slice owns an address and port: asked for whole columns of a table at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nat_rewriter.model.slices import Address, PortRange, Protocol, Slice, merge_ranges

Column = NDArray[Any]

NOBODY = -1

# The protocols a slice may hold, by IP protocol number; ICMP stands for both ICMPs.
_PROTOCOL_CLASS = np.full(256, NOBODY, dtype=np.int64)
_PROTOCOL_CLASS[[6, 17, 1, 58]] = [0, 1, 2, 2]
_CLASS_OF = {Protocol.TCP: 0, Protocol.UDP: 1, Protocol.ICMP: 2}
_CLASSES = len(_CLASS_OF)

_HALF = (1 << 64) - 1
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Owned:
    """Intervals of (address, protocol, port) in ascending order, and the number of the slice that has each."""

    first: Column
    last: Column
    slice_number: Column

    def find(self, points: Column) -> Column:
        """Return the slice number of each point, NOBODY where none owns it."""
        if not len(self.first):
            return np.full(len(points), NOBODY, dtype=np.int64)
        before = np.searchsorted(self.first, points, side="right") - 1
        inside = (before >= 0) & (points <= self.last[before])
        return np.where(inside, self.slice_number[before], NOBODY)


class SliceIndex:
    """The slices of a configuration, ready to be asked with columns of flows or sockets."""

    def __init__(self, slices: Sequence[Slice]) -> None:
        self.slices = tuple(slices)
        known = {(each.address.version, int(each.address)): each.address for each in self.slices}
        keyed = sorted((_mixed(number), version, number, address) for (version, number), address in known.items())
        self.addresses: tuple[Address, ...] = tuple(address for *_, address in keyed)
        self._keys = np.array([key for key, *_ in keyed], dtype=np.uint64)
        self._families = np.array([version for _, version, *_ in keyed], dtype=np.uint8)
        self._halves = np.array([[n >> 64, n & _HALF] for _, _, n, _ in keyed], dtype=np.uint64).reshape(-1, 2)
        self._number_of = {address: number for number, address in enumerate(self.addresses)}
        self._all = self._intervals((number, each, each.ranges) for number, each in enumerate(self.slices))
        self._rewriting = self._intervals(
            (number, each, each.rewrite_ranges) for number, each in enumerate(self.slices)
        )

    def find_addresses(self, addresses: Column, families: Column) -> Column:
        """Return the number of each soft-unicast address of a column of halves, NOBODY for any other address."""
        found = np.full(len(addresses), NOBODY, dtype=np.int32)
        if not len(self._keys):
            return found
        high, low = addresses[:, 0], addresses[:, 1]
        keys = low ^ (high * _SPREAD)
        place = np.searchsorted(self._keys, keys)
        place[place == len(self._keys)] = 0
        rows = np.flatnonzero(self._keys[place] == keys)
        match = place[rows]
        same = (families[rows] == self._families[match]) & (addresses[rows] == self._halves[match]).all(axis=1)
        found[rows[same]] = match[same]
        return found

    def owners(self, address_numbers: Column, protocols: Column, ports: Column) -> Column:
        """Return the number of the slice that owns each address (by number), protocol and port."""
        return self._all.find(_points(address_numbers, protocols, ports))

    def rewriters(self, address_numbers: Column, protocols: Column, ports: Column) -> Column:
        """Return the number of the slice whose ports for packet rewriting include each port."""
        return self._rewriting.find(_points(address_numbers, protocols, ports))

    def slice_name(self, number: int) -> str | None:
        """Return the name of a slice by its number, None for NOBODY."""
        return None if number == NOBODY else self.slices[number].name

    def _intervals(self, owned: Iterable[tuple[int, Slice, tuple[PortRange, ...]]]) -> Owned:
        rows = sorted(
            (base + ports.first, base + ports.last, number)
            for number, each, ranges in owned
            for base in self._bases(each)
            for ports in merge_ranges(ranges)
        )
        columns = np.array(rows, dtype=np.int64).reshape(-1, 3)
        return Owned(columns[:, 0].copy(), columns[:, 1].copy(), columns[:, 2].copy())

    def _bases(self, each: Slice) -> list[int]:
        address = self._number_of[each.address]
        return [(address * _CLASSES + _CLASS_OF[protocol]) << 16 for protocol in each.protocols]


def _mixed(number: int) -> int:
    return (number & _HALF) ^ ((number >> 64) * int(_SPREAD) & _HALF)


def _points(address_numbers: Column, protocols: Column, ports: Column) -> Column:
    classes = _PROTOCOL_CLASS[protocols]
    points = ((address_numbers.astype(np.int64) * _CLASSES + classes) << 16) + ports
    return np.where((address_numbers < 0) | (classes < 0), NOBODY, points)
