"""How much of a slice a destination uses: a port serves one flow for each destination, so use is counted there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nat_rewriter.detect.keys import distinct, first_of_equals, group_rows, is_among, mix
from nat_rewriter.detect.ownership import NOBODY, SliceIndex
from nat_rewriter.detect.parties import IS_PORTLESS
from nat_rewriter.detect.port_search import PortSearch
from nat_rewriter.model.flows import address_from_halves
from nat_rewriter.model.tuples import FlowTuple, protocol_name

Rows = NDArray[Any]

_PORT_BITS, _PORT_MASK = np.int64(16), np.int64(0xFFFF)


@dataclass(frozen=True, slots=True)
class Use:
    """Distinct ports of a slice in use towards one destination; ``towards`` is a tuple on the wire that goes there.

    ``find_chance`` is the probability that the kernel finds a port for the next new flow.
    """

    slice_number: int
    towards: FlowTuple
    zone: int
    used: int
    capacity: int
    find_chance: float

    @property
    def free(self) -> int:
        """How many ports are not in use."""
        return max(0, self.capacity - self.used)

    @property
    def findable(self) -> int:
        """Of as many new flows as there are free ports, how many would find one as things are."""
        return int(self.free * self.find_chance)


# The use of a slice towards one destination, as the C core packs it: struct nr_use in kernel/_core/core.h.
USE_FIELDS: list[Any] = [
    ("server", "u8", 2),
    ("slice", "u4"),
    ("used", "u4"),  # distinct ports
    ("flows", "u4"),
    ("number", "u4"),  # by which whoever counted knows it
    ("port", "u2"),  # 0 where an echo id takes the place of ports
    ("zone", "u2"),
    ("family", "u1"),
    ("protocol", "u1"),
    ("reserved", "u2"),
]


class Counted(Protocol):
    """Flows counted by slice and destination, by whatever means."""

    @property
    def slice_flows(self) -> list[int]:
        """How many flows leave from each slice."""

    def uses(self) -> Rows:
        """Return the use of every (slice, protocol, destination, zone), as records of USE_FIELDS."""

    def ports(self, uses: Rows) -> tuple[Rows, Rows]:
        """Return the ports in use of some uses: places in ``uses``, ascending, and ports, ascending for each place."""


class FlowCount:
    """Flows counted from a table at hand; uses with fewer than ``fewest`` flows are left out.

    ``rows`` are the flows that leave from a soft-unicast address, ``address_numbers`` says from which.
    """

    def __init__(self, flows: Rows, rows: Rows, address_numbers: Rows, index: SliceIndex, fewest: int = 1) -> None:
        protocols, ports = flows["protocol"][rows], flows["reply_dport"][rows]
        owners = index.owners(address_numbers, protocols, ports)
        self.slice_flows: list[int] = np.bincount(owners[owners != NOBODY], minlength=len(index.slices)).tolist()
        slices = index.rewriters(address_numbers, protocols, ports)
        rows, slices = rows[slices != NOBODY], slices[slices != NOBODY]
        groups = _group_keys(flows, rows, slices)
        if fewest > 1:
            busy = np.flatnonzero(is_among(groups, _keys_seen(groups, fewest)))
            rows, slices, groups = rows[busy], slices[busy], groups[busy]
        first, numbers = group_rows(groups)
        self._pairs = distinct((numbers << _PORT_BITS) | flows["reply_dport"][rows])
        self._uses = _use_records(flows, rows[first], slices[first])
        self._uses["used"] = np.bincount(self._pairs >> _PORT_BITS, minlength=len(first))
        self._uses["flows"] = np.bincount(numbers, minlength=len(first))

    def uses(self) -> Rows:
        """Return the use of every (slice, protocol, destination, zone), as records of USE_FIELDS."""
        return self._uses

    def ports(self, uses: Rows) -> tuple[Rows, Rows]:
        """Return the ports in use of some uses: places in ``uses``, ascending, and ports, ascending for each place."""
        places = np.full(len(self._uses), NOBODY)
        places[uses["number"]] = np.arange(len(uses))
        found = places[self._pairs >> _PORT_BITS]
        wanted = np.flatnonzero(found != NOBODY)
        # Chosen in another order than counted, places do not ascend by themselves.
        wanted = wanted[np.argsort(found[wanted], kind="stable")]
        return found[wanted], self._pairs[wanted] & _PORT_MASK


class UseCount:
    """How full the slices are towards every destination, in columns."""

    def __init__(self, counted: Counted, index: SliceIndex) -> None:
        self._counted, self._index = counted, index
        self._records = counted.uses()
        self.slices = self._records["slice"].astype(np.int64)
        self.used = self._records["used"].astype(np.int64)
        self.capacities = slice_capacities(index)[self.slices]

    def uses(self, chosen: Rows) -> list[Use]:
        """Return the chosen rows of the columns as objects, busiest first."""
        return self._made(chosen, self._chances(chosen))

    def beyond(self, share: float) -> list[Use]:
        """Return those with at least that share of the ports in use that are used or findable."""
        near = np.flatnonzero(self.used >= least_use(share) * self.capacities)
        used, free = self.used[near], self.capacities[near] - self.used[near]
        chances = self._chances(near)
        beyond = used >= share * (used + free * chances)
        return self._made(near[beyond], chances[beyond])

    def busiest(self) -> list[Use]:
        """Return for each slice in use the one with the most ports."""
        order = np.lexsort((-self.used, self.slices))
        return self.uses(order[first_of_equals(self.slices[order])])

    def _made(self, chosen: Rows, chances: Rows) -> list[Use]:
        made = [self._use(row, chance) for row, chance in zip(chosen, chances, strict=True)]
        return sorted(made, key=lambda use: use.used, reverse=True)

    def _use(self, row: int, chance: float) -> Use:
        one: Any = self._records[row]
        number, protocol = int(one["slice"]), protocol_name(int(one["protocol"]))
        server = address_from_halves(one["server"], one["family"])
        towards = FlowTuple(protocol, self._index.slices[number].address, 0, server, int(one["port"]))
        return Use(number, towards, int(one["zone"]), int(one["used"]), int(self.capacities[row]), float(chance))

    def _chances(self, chosen: Rows) -> Rows:
        """Return for each of the chosen rows the probability that a new flow finds a port."""
        if not len(chosen):  # to look for their ports is to look through all there are
            return np.empty(0)
        places, ports = self._counted.ports(self._records[chosen])
        return PortSearch(self._index.slices).chances(self.slices[chosen], places, ports)


def fewest_flows(index: SliceIndex, share: float) -> int:
    """Return how many flows a destination must have before it can use a share of what any slice has to offer."""
    capacities = slice_capacities(index)
    return max(1, math.ceil(least_use(share) * int(capacities[capacities > 0].min(initial=1 << 16))))


def least_use(share: float) -> float:
    """Return the share of a slice's ports below which no use can be ``share`` of used and findable ports together.

    With x of the ports in use a search finds one with a chance of 1 - x or better: its first try alone has that. So x
    solves x / (x + (1 - x)²) = share.
    """
    return ((share + 1) - math.sqrt((share + 1) ** 2 - 4 * share**2)) / (2 * share)


def slice_capacities(index: SliceIndex) -> Rows:
    """Return for each slice how many ports packet rewriting may use."""
    counts = [sum(len(ports) for ports in each.rewrite_ranges) for each in index.slices]
    return np.array(counts, dtype=np.int64)


def _group_keys(flows: Rows, rows: Rows, slices: Rows) -> Rows:
    """Return one key for each (slice, protocol, destination, zone); an echo id is no part of a destination."""
    protocols, servers = flows["protocol"][rows], flows["reply_src"][rows]
    portless = IS_PORTLESS[protocols]
    ports = np.where(portless, 0, flows["reply_sport"][rows]).astype(np.uint64)
    packed = (ports << np.uint64(24)) | (flows["zone"][rows].astype(np.uint64) << np.uint64(8)) | protocols
    return mix(packed, slices, servers[:, 0], servers[:, 1])


def _keys_seen(keys: Rows, times: int) -> Rows:
    """Return the keys that occur at least so many times."""
    ordered = np.sort(keys)
    starts = np.flatnonzero(first_of_equals(ordered))
    counts = np.diff(np.append(starts, len(ordered)))
    seen: Rows = ordered[starts[counts >= times]]
    return seen


def _use_records(flows: Rows, rows: Rows, slices: Rows) -> Rows:
    """Return a record of USE_FIELDS for each row, as far as a flow tells."""
    records = np.zeros(len(rows), USE_FIELDS)
    records["server"], records["slice"], records["number"] = flows["reply_src"][rows], slices, np.arange(len(rows))
    records["port"] = np.where(IS_PORTLESS[flows["protocol"][rows]], 0, flows["reply_sport"][rows])
    for name in ("zone", "family", "protocol"):
        records[name] = flows[name][rows]
    return records
