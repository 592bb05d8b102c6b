"""How much of a slice a destination uses: a port serves one flow for each destination, so use is counted there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nat_rewriter.detect.keys import is_among, mix
from nat_rewriter.detect.ownership import NOBODY, SliceIndex
from nat_rewriter.detect.parties import PORTLESS, reply_tuple
from nat_rewriter.detect.port_search import PortSearch
from nat_rewriter.model.tuples import FlowTuple

Rows = NDArray[Any]

_PORT_BITS, _PORT_MASK = np.int64(16), np.int64(0xFFFF)
_PORTLESS = np.isin(np.arange(256), PORTLESS)


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


class UseCount:
    """Use of every (slice, protocol, destination, zone) that at least ``fewest`` flows belong to, in columns.

    ``rows`` are the flows that leave from a soft-unicast address, ``address_numbers`` says from which.
    """

    def __init__(self, flows: Rows, rows: Rows, address_numbers: Rows, index: SliceIndex, fewest: int = 1) -> None:
        self._flows = flows
        slices = index.rewriters(address_numbers, flows["protocol"][rows], flows["reply_dport"][rows])
        rows, slices = rows[slices != NOBODY], slices[slices != NOBODY]
        groups = _group_keys(flows, rows, slices)
        if fewest > 1:
            busy = np.flatnonzero(is_among(groups, _keys_seen(groups, fewest)))
            rows, slices, groups = rows[busy], slices[busy], groups[busy]
        first, self._ports = _distinct_ports(groups, flows["reply_dport"][rows])
        self._rows, self.slices = rows[first], slices[first]
        self.used = np.bincount(self._ports >> _PORT_BITS, minlength=len(first))
        self.capacities = slice_capacities(index)[self.slices]
        self._index = index

    def uses(self, chosen: Rows) -> list[Use]:
        """Return the chosen rows of the columns as objects, busiest first."""
        made = [self._use(row, chance) for row, chance in zip(chosen, self._chances(chosen), strict=True)]
        return sorted(made, key=lambda use: use.used, reverse=True)

    def beyond(self, share: float) -> list[Use]:
        """Return those with at least that share of the ports in use that are used or findable."""
        near = np.flatnonzero(self.used >= least_use(share) * self.capacities)
        used, free = self.used[near], self.capacities[near] - self.used[near]
        return self.uses(near[used >= share * (used + free * self._chances(near))])

    def busiest(self) -> list[Use]:
        """Return for each slice in use the one with the most ports."""
        order = np.lexsort((-self.used, self.slices))
        return self.uses(order[_first_of_equals(self.slices[order])])

    def _use(self, row: int, chance: float) -> Use:
        flow: Any = self._flows[self._rows[row]]
        towards, zone = reply_tuple(flow).reversed(), int(flow["zone"])
        used, capacity = int(self.used[row]), int(self.capacities[row])
        return Use(int(self.slices[row]), towards, zone, used, capacity, float(chance))

    def _chances(self, chosen: Rows) -> Rows:
        """Return for each of the chosen rows the probability that a new flow finds a port."""
        places = np.full(len(self.used), NOBODY)
        places[chosen] = np.arange(len(chosen))
        found = places[self._ports >> _PORT_BITS]
        wanted = np.flatnonzero(found != NOBODY)
        # Chosen in another order than the rows, places do not ascend by themselves.
        wanted = wanted[np.argsort(found[wanted], kind="stable")]
        search = PortSearch(self._index.slices)
        return search.chances(self.slices[chosen], found[wanted], self._ports[wanted] & _PORT_MASK)


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
    portless = _PORTLESS[protocols]
    ports = np.where(portless, 0, flows["reply_sport"][rows]).astype(np.uint64)
    packed = (ports << np.uint64(24)) | (flows["zone"][rows].astype(np.uint64) << np.uint64(8)) | protocols
    return mix(packed, slices, servers[:, 0], servers[:, 1])


def _keys_seen(keys: Rows, times: int) -> Rows:
    """Return the keys that occur at least so many times."""
    ordered = np.sort(keys)
    starts = np.flatnonzero(_first_of_equals(ordered))
    counts = np.diff(np.append(starts, len(ordered)))
    seen: Rows = ordered[starts[counts >= times]]
    return seen


def _distinct_ports(groups: Rows, ports: Rows) -> tuple[Rows, Rows]:
    """Return the first row of each group, and every (number of a group, port) once, in order, as one number.

    This is what numpy.unique does, without the hundredth of a second that its first call takes to import numpy.ma.
    """
    order = np.argsort(groups, kind="stable")
    starts = _first_of_equals(groups[order])
    numbers = np.empty(len(groups), dtype=np.int64)
    numbers[order] = np.cumsum(starts) - 1
    pairs = np.sort((numbers << _PORT_BITS) | ports)
    return order[starts], pairs[_first_of_equals(pairs)]


def _first_of_equals(ordered: Rows) -> Rows:
    """Tell of each row of an ordered column whether it is the first of its value."""
    first = np.ones(len(ordered), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return first
