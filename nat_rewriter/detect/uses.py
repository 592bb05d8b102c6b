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
from nat_rewriter.model.tuples import FlowTuple

Rows = NDArray[Any]

_PORT_BITS = np.int64(16)
_PORTLESS = np.isin(np.arange(256), PORTLESS)


@dataclass(frozen=True, slots=True)
class Use:
    """Distinct ports of a slice in use towards one destination; ``towards`` is a tuple on the wire that goes there."""

    slice_number: int
    towards: FlowTuple
    zone: int
    used: int
    capacity: int


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
        first, self.used = _count_distinct(groups, flows["reply_dport"][rows])
        self._rows, self.slices = rows[first], slices[first]
        self.capacities = slice_capacities(index)[self.slices]

    def uses(self, chosen: Rows) -> list[Use]:
        """Return the chosen rows of the columns as objects, busiest first."""
        made = [self._use(row) for row in chosen]
        return sorted(made, key=lambda use: use.used, reverse=True)

    def beyond(self, share: float) -> list[Use]:
        """Return those with at least that share of the slice's ports in use."""
        return self.uses(np.flatnonzero(self.used >= share * self.capacities))

    def busiest(self) -> list[Use]:
        """Return for each slice in use the one with the most ports."""
        order = np.lexsort((-self.used, self.slices))
        return self.uses(order[_first_of_equals(self.slices[order])])

    def _use(self, row: int) -> Use:
        flow: Any = self._flows[self._rows[row]]
        towards, zone = reply_tuple(flow).reversed(), int(flow["zone"])
        return Use(int(self.slices[row]), towards, zone, int(self.used[row]), int(self.capacities[row]))


def fewest_flows(index: SliceIndex, share: float) -> int:
    """Return how many flows a destination must have before it can use a share of any slice."""
    capacities = slice_capacities(index)
    return max(1, math.ceil(share * int(capacities[capacities > 0].min(initial=1 << 16))))


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


def _count_distinct(groups: Rows, ports: Rows) -> tuple[Rows, Rows]:
    """Return for each group its first row and how many different ports it has.

    This is what numpy.unique does, without the hundredth of a second that its first call takes to import numpy.ma.
    """
    order = np.argsort(groups, kind="stable")
    starts = _first_of_equals(groups[order])
    numbers = np.empty(len(groups), dtype=np.int64)
    numbers[order] = np.cumsum(starts) - 1
    pairs = np.sort((numbers << _PORT_BITS) | ports)
    distinct = pairs[_first_of_equals(pairs)] >> _PORT_BITS
    return order[starts], np.bincount(distinct, minlength=int(starts.sum()))


def _first_of_equals(ordered: Rows) -> Rows:
    """Tell of each row of an ordered column whether it is the first of its value."""
    first = np.ones(len(ordered), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return first
