"""How much of a slice a destination uses: a port serves one flow for each destination, so use is counted there."""

from __future__ import annotations

from collections.abc import Iterator
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


@dataclass(frozen=True, slots=True)
class Use:
    """Distinct ports of a slice in use towards one destination; ``towards`` is a tuple on the wire that goes there."""

    slice_number: int
    towards: FlowTuple
    zone: int
    used: int
    capacity: int


def list_uses(flows: Rows, rows: Rows, address_numbers: Rows, index: SliceIndex, share: float) -> list[Use]:
    """Return the (slice, protocol, destination) with at least a share of the slice's ports in use, busiest first.

    ``rows`` are the flows that leave from a soft-unicast address, ``address_numbers`` says from which.
    """
    capacities = slice_capacities(index)
    slices = index.rewriters(address_numbers, flows["protocol"][rows], flows["reply_dport"][rows])
    rows, slices = rows[slices != NOBODY], slices[slices != NOBODY]
    if not len(rows):
        return []
    groups = _group_keys(flows, rows, slices)
    fewest = max(1, int(np.ceil(share * capacities[capacities > 0].min())))
    busy = np.flatnonzero(is_among(groups, _keys_seen(groups, fewest)))
    used = _uses_of(flows, rows[busy], slices[busy], groups[busy], capacities, share)
    return sorted(used, key=lambda use: -use.used)


def slice_capacities(index: SliceIndex) -> Rows:
    """Return for each slice how many ports packet rewriting may use."""
    counts = [sum(len(ports) for ports in each.rewrite_ranges) for each in index.slices]
    return np.array(counts, dtype=np.int64)


def _group_keys(flows: Rows, rows: Rows, slices: Rows) -> Rows:
    """Return one key for each (slice, protocol, destination, zone); an echo id is no part of a destination."""
    protocols, servers = flows["protocol"][rows], flows["reply_src"][rows]
    portless = (protocols == PORTLESS[0]) | (protocols == PORTLESS[1])
    ports = np.where(portless, 0, flows["reply_sport"][rows]).astype(np.uint64)
    packed = (ports << np.uint64(24)) | (flows["zone"][rows].astype(np.uint64) << np.uint64(8)) | protocols
    return mix(packed, slices, servers[:, 0], servers[:, 1])


def _keys_seen(keys: Rows, times: int) -> Rows:
    """Return the keys that occur at least so many times."""
    ordered = np.sort(keys)
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    counts = np.diff(np.append(starts, len(ordered)))
    seen: Rows = ordered[starts[counts >= times]]
    return seen


def _uses_of(flows: Rows, rows: Rows, slices: Rows, groups: Rows, capacities: Rows, share: float) -> Iterator[Use]:
    keys, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
    ports = flows["reply_dport"][rows].astype(np.int64)
    distinct = np.unique((numbers.astype(np.int64) << _PORT_BITS) | ports) >> _PORT_BITS
    used = np.bincount(distinct, minlength=len(keys))
    for group in np.flatnonzero(used >= share * capacities[slices[first]]):
        flow: Any = flows[rows[first[group]]]
        number = int(slices[first[group]])
        yield Use(number, reply_tuple(flow).reversed(), int(flow["zone"]), int(used[group]), int(capacities[number]))
