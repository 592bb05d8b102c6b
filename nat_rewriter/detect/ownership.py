"""Which slice owns an address and port: asked for whole columns of a table at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nat_rewriter.model.slices import Address, PortRange, Protocol, Slice, merge_ranges

Column = NDArray[Any]

NOBODY = -1

# The protocols a slice may hold, by IP protocol number; ICMP stands for both ICMPs.
_PROTOCOL_CLASS = np.full(256, NOBODY, dtype=np.int32)
_PROTOCOL_CLASS[[6, 17, 1, 58]] = [0, 1, 2, 2]
_CLASS_OF = {Protocol.TCP: 0, Protocol.UDP: 1, Protocol.ICMP: 2}
_CLASSES = len(_CLASS_OF)

_HALF = (1 << 64) - 1
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


class AddressTable:
    """Numbers of the soft-unicast addresses: a hash table with linear probing, asked by column."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        bits = max(4, (len(addresses) * 8).bit_length())
        self._shift = np.uint64(64 - bits)
        self._mask = (1 << bits) - 1
        self._slots = np.full(1 << bits, NOBODY, dtype=np.int32)
        numbers = [int(address) for address in addresses]
        self._high = np.array([number >> 64 for number in numbers], dtype=np.uint64)
        self._low = np.array([number & _HALF for number in numbers], dtype=np.uint64)
        self._family = np.array([address.version for address in addresses], dtype=np.uint8)
        self._probes = max(map(self._insert, range(len(addresses))), default=0)

    def find(self, addresses: Column, families: Column) -> Column:
        """Return the number of each address of a column of halves, NOBODY for those not in the table."""
        found = np.full(len(addresses), NOBODY, dtype=np.int32)
        if not self._probes:
            return found
        slots = self._first_slots(addresses[:, 0], addresses[:, 1])
        asked = np.arange(len(addresses))
        for _ in range(self._probes):
            number = self._slots[slots[asked]]
            asked, number = asked[number != NOBODY], number[number != NOBODY]
            same = self._same(number, addresses[asked], families[asked])
            found[asked[same]] = number[same]
            asked = asked[~same]
            slots[asked] = (slots[asked] + 1) & self._mask
        return found

    def _same(self, number: Column, addresses: Column, families: Column) -> Column:
        halves_same = (self._low[number] == addresses[:, 1]) & (self._high[number] == addresses[:, 0])
        same: Column = halves_same & (self._family[number] == families)
        return same

    def _first_slots(self, high: Column, low: Column) -> Column:
        slots: Column = ((low ^ (high * _SPREAD)) * _SPREAD >> self._shift).astype(np.int64)
        return slots

    def _insert(self, number: int) -> int:
        """Put an address into the first free slot; return how many slots had to be looked at."""
        slot = int(self._first_slots(self._high[number : number + 1], self._low[number : number + 1])[0])
        probes = 1
        while self._slots[slot] != NOBODY:
            slot, probes = (slot + 1) & self._mask, probes + 1
        self._slots[slot] = number
        return probes


class PortTable:
    """Port ranges of every (address, protocol class), and the slice that has each; asked by column.

    The ranges of one place lie in ascending order from ``_starts[place]`` on; a place is searched by halving, in
    as many steps for the whole column as the place with the most ranges needs.
    """

    def __init__(self, places: int, owned: Sequence[tuple[int, PortRange, int]]) -> None:
        ordered = sorted((place, ports.first, ports.last, number) for place, ports, number in owned)
        # A last range that holds no port, so that every start can be read.
        columns = np.array([*ordered, (places, 1, 0, NOBODY)], dtype=np.int32)
        place, self._first, self._last, self._number = (column.copy() for column in columns.T)
        self._starts = np.searchsorted(place, np.arange(places + 1)).astype(np.int32)
        most = int(np.diff(self._starts).max(initial=1))
        self._steps = (most - 1).bit_length()

    def find(self, places: Column, ports: Column) -> Column:
        """Return the slice number of each place and port, NOBODY where no slice has it; places may be NOBODY."""
        low, end = self._starts[places], self._starts[places + 1]
        high = end
        for _ in range(self._steps):
            middle = (low + high) >> 1
            right = self._first[middle] <= ports
            low, high = np.where(right, middle, low), np.where(right, high, middle)
        inside = (places != NOBODY) & (low < end) & (self._first[low] <= ports) & (ports <= self._last[low])
        return np.where(inside, self._number[low], NOBODY)


class SliceIndex:
    """The slices of a configuration, ready to be asked with columns of flows or sockets."""

    def __init__(self, slices: Sequence[Slice]) -> None:
        self.slices = tuple(slices)
        self.addresses = tuple(dict.fromkeys(each.address for each in self.slices))
        self._address_table = AddressTable(self.addresses)
        self._owners = self._ports(lambda each: each.ranges)
        self._rewriters = self._ports(lambda each: each.rewrite_ranges)

    def find_addresses(self, addresses: Column, families: Column) -> Column:
        """Return the number of each soft-unicast address of a column of halves, NOBODY for any other address."""
        return self._address_table.find(addresses, families)

    def owners(self, address_numbers: Column, protocols: Column, ports: Column) -> Column:
        """Return the number of the slice that owns each address (by number), protocol and port."""
        return self._owners.find(_places(address_numbers, protocols), ports)

    def rewriters(self, address_numbers: Column, protocols: Column, ports: Column) -> Column:
        """Return the number of the slice whose ports for packet rewriting include each port."""
        return self._rewriters.find(_places(address_numbers, protocols), ports)

    def slice_name(self, number: int) -> str | None:
        """Return the name of a slice by its number, None for NOBODY."""
        return None if number == NOBODY else self.slices[number].name

    def _ports(self, ranges_of: Callable[[Slice], tuple[PortRange, ...]]) -> PortTable:
        number_of = {address: number for number, address in enumerate(self.addresses)}
        owned = [
            (number_of[each.address] * _CLASSES + _CLASS_OF[protocol], ports, number)
            for number, each in enumerate(self.slices)
            for protocol in each.protocols
            for ports in merge_ranges(ranges_of(each))
        ]
        return PortTable(len(self.addresses) * _CLASSES, owned)


def _places(address_numbers: Column, protocols: Column) -> Column:
    classes = _PROTOCOL_CLASS[protocols]
    return np.where((address_numbers < 0) | (classes < 0), NOBODY, address_numbers * _CLASSES + classes)
