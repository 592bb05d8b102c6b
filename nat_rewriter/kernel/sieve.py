"""The sieve of the C core: flows are counted as they come in, and only those come back that detection has to see.

Nothing here needs numpy before the first question about what was counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nat_rewriter.kernel._core._native import ffi, lib
from nat_rewriter.model.slices import Address, PortRange, Protocol, Slice, merge_ranges

if TYPE_CHECKING:
    from nat_rewriter.detect.uses import Rows

_CLASSES = {Protocol.TCP: 0, Protocol.UDP: 1, Protocol.ICMP: 2}
_HALF = (1 << 64) - 1


class Sieve:
    """Counts flows by slice, and by (slice, protocol, destination, zone) the ports in use; tells which ones to see.

    To be seen are flows from a soft-unicast address, those that a socket accepted on one, and those that NAT sent from
    a port of one that no slice has. Flows that are counted twice, or counted out without having been counted in, are
    the caller's mistake.
    """

    def __init__(self, slices: Sequence[Slice]) -> None:
        self.slices = tuple(slices)
        numbers = {address: number for number, address in enumerate(dict.fromkeys(each.address for each in slices))}
        addresses = ffi.new("struct nr_soft[]", [_soft(address) for address in numbers])
        owned = ffi.new("struct nr_owned[]", self._ranges(numbers, lambda each: each.ranges))
        rewritten = ffi.new("struct nr_owned[]", self._ranges(numbers, lambda each: each.rewrite_ranges))
        handle = lib.nr_sieve_new(
            addresses, len(addresses), owned, len(owned), rewritten, len(rewritten), len(self.slices)
        )
        if handle == ffi.NULL:
            raise MemoryError
        self.handle = ffi.gc(handle, lib.nr_sieve_free)

    def _ranges(
        self, numbers: dict[Address, int], ranges_of: Callable[[Slice], tuple[PortRange, ...]]
    ) -> list[tuple[int, int, int, int]]:
        """Return place, first and last port and slice of all ranges, in the order that the core wants."""
        return sorted(
            (numbers[each.address] * len(_CLASSES) + _CLASSES[protocol], ports.first, ports.last, number)
            for number, each in enumerate(self.slices)
            for protocol in each.protocols
            for ports in merge_ranges(ranges_of(each))
        )

    def add(self, records: Rows) -> Rows:
        """Count flows in; tell of each whether detection has to see it."""
        import numpy as np

        seen = np.empty(len(records), np.bool_)
        self._count(records, 1, seen)
        return seen

    def remove(self, records: Rows) -> None:
        """Count flows out."""
        self._count(records, -1, None)

    def _count(self, records: Rows, sign: int, seen: Rows | None) -> None:
        flows = ffi.from_buffer("struct nr_flow[]", records.view("u1"))
        kept = ffi.NULL if seen is None else ffi.from_buffer("uint8_t[]", seen.view("u1"), require_writable=True)
        _check(lib.nr_sieve_count(self.handle, flows, len(records), sign, kept))

    def reset(self) -> None:
        """Forget what was counted."""
        _check(lib.nr_sieve_reset(self.handle))

    @property
    def flows(self) -> int:
        """How many flows were counted, whatever they have to do with slices."""
        return int(lib.nr_sieve_flows(self.handle))

    @property
    def slice_flows(self) -> list[int]:
        """How many flows leave from each slice."""
        counts = ffi.new("uint64_t[]", len(self.slices))
        lib.nr_sieve_slices(self.handle, counts)
        return list(counts)

    def zones(self) -> list[int]:
        """Return the zones of flows that leave, or left, from a soft-unicast address."""
        bits = ffi.new("uint8_t[8192]")
        lib.nr_sieve_zones(self.handle, bits)
        number = int.from_bytes(ffi.buffer(bits), "little")
        return [zone for zone in range(number.bit_length()) if number >> zone & 1] if number else []

    def uses(self) -> Rows:
        """Return all uses, as records of USE_FIELDS, in no order."""
        import numpy as np

        from nat_rewriter.detect.uses import USE_FIELDS

        records = np.empty(lib.nr_sieve_uses(self.handle, ffi.NULL, 0), USE_FIELDS)
        room = ffi.from_buffer("struct nr_use[]", records.view("u1"), require_writable=True)
        lib.nr_sieve_uses(self.handle, room, len(records))
        return records

    def ports(self, uses: Rows) -> tuple[Rows, Rows]:
        """Return the ports in use of some uses: places in ``uses``, ascending, and ports, ascending for each place."""
        import numpy as np

        places = np.full(lib.nr_sieve_numbers(self.handle), -1, np.int64)
        places[uses["number"]] = np.arange(len(uses))
        pairs = np.empty(int(uses["used"].sum()), np.int64)
        lib.nr_sieve_ports(self.handle, _numbers(places), _numbers(pairs), len(pairs))
        pairs.sort()
        return pairs >> 16, pairs & 0xFFFF


def _soft(address: Address) -> tuple[list[int], int, int]:
    return [int(address) >> 64, int(address) & _HALF], address.version, 0


def _numbers(column: Rows) -> Any:
    return ffi.from_buffer("int64_t[]", column.view("u1"), require_writable=True)


def _check(result: int) -> None:
    if result < 0:
        raise MemoryError
