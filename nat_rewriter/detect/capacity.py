"""How much of a slice a destination uses: a port serves one flow for each destination, so use is counted there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nat_rewriter.detect.keys import is_among, mix
from nat_rewriter.detect.observation import Observation, Rows
from nat_rewriter.detect.ownership import NOBODY
from nat_rewriter.detect.parties import PORTLESS, destination_text, port_word, reply_tuple
from nat_rewriter.model.findings import Finding, Kind
from nat_rewriter.model.tuples import FlowTuple

_DISTINCT_SHIFT = np.int64(16)


@dataclass(frozen=True, slots=True)
class Use:
    """Distinct ports of a slice in use towards one destination; ``towards`` is a tuple on the wire that goes there."""

    slice_number: int
    towards: FlowTuple
    zone: int
    used: int
    capacity: int


def find_slice_exhausted(observation: Observation) -> list[Finding]:
    """Destinations towards which every port of a slice is in use."""
    return [_exhausted(observation, use) for use in list_uses(observation, 1.0)]


def find_slice_pressure(observation: Observation) -> list[Finding]:
    """Destinations that use more of a slice than the threshold, and not all of it yet."""
    uses = list_uses(observation, observation.pressure)
    return [
        _pressure(observation, use)
        for use in uses
        if observation.pressure * use.capacity < use.used < use.capacity
    ]  # fmt: skip


def list_uses(observation: Observation, share: float) -> list[Use]:
    """Return the (slice, protocol, destination) with at least a share of the slice's ports in use, busiest first."""
    capacities = slice_capacities(observation)
    rows, slices = _rows_in_slices(observation)
    if not len(rows):
        return []
    groups = _group_keys(observation.flows[rows], slices)
    fewest = max(1, int(np.ceil(share * capacities[capacities > 0].min())))
    busy = np.flatnonzero(is_among(groups, _keys_seen(groups, fewest)))
    used = list(_uses_of(observation, rows[busy], slices[busy], groups[busy], capacities))
    return sorted((use for use in used if use.used >= share * use.capacity), key=lambda use: -use.used)


def slice_capacities(observation: Observation) -> Rows:
    """Return for each slice how many ports packet rewriting may use."""
    counts = [sum(len(ports) for ports in each.rewrite_ranges) for each in observation.slices]
    return np.array(counts, dtype=np.int64)


def _rows_in_slices(observation: Observation) -> tuple[Rows, Rows]:
    rows, flows = observation.wire_rows, observation.flows
    slices = observation.index.rewriters(
        observation.wire_numbers, flows["protocol"][rows], flows["reply_dport"][rows]
    )  # fmt: skip
    inside = np.flatnonzero(slices != NOBODY)
    return rows[inside], slices[inside]


def _group_keys(flows: Rows, slices: Rows) -> Rows:
    """Return one key for each (slice, protocol, destination, zone); an echo id is no part of a destination."""
    ports = np.where(np.isin(flows["protocol"], PORTLESS), 0, flows["reply_sport"]).astype(np.uint64)
    packed = (ports << np.uint64(24)) | (flows["zone"].astype(np.uint64) << np.uint64(8)) | flows["protocol"]
    return mix(packed, slices, flows["reply_src"][:, 0], flows["reply_src"][:, 1])


def _keys_seen(keys: Rows, times: int) -> Rows:
    """Return the keys that occur at least so many times."""
    ordered = np.sort(keys)
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    counts = np.diff(np.append(starts, len(ordered)))
    seen: Rows = ordered[starts[counts >= times]]
    return seen


def _uses_of(observation: Observation, rows: Rows, slices: Rows, groups: Rows, capacities: Rows) -> Iterator[Use]:
    keys, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
    ports = observation.flows["reply_dport"][rows].astype(np.int64)
    distinct = np.unique((numbers.astype(np.int64) << _DISTINCT_SHIFT) | ports) >> _DISTINCT_SHIFT
    used = np.bincount(distinct, minlength=len(keys))
    for row, count in zip(first, used, strict=True):
        flow: Any = observation.flows[rows[row]]
        number = int(slices[row])
        yield Use(number, reply_tuple(flow).reversed(), int(flow["zone"]), int(count), int(capacities[number]))


def _exhausted(observation: Observation, use: Use) -> Finding:
    name, where = observation.index.slice_name(use.slice_number), destination_text(use.towards)
    return _finding(
        observation,
        Kind.SLICE_EXHAUSTED,
        use,
        f"All {use.capacity} {port_word(use.towards)}s of slice {name} are in use to {where}: "
        f"new {use.towards.protocol} flows there are dropped.",
    )


def _pressure(observation: Observation, use: Use) -> Finding:
    name, where = observation.index.slice_name(use.slice_number), destination_text(use.towards)
    return _finding(
        observation,
        Kind.SLICE_PRESSURE,
        use,
        f"{use.used} of the {use.capacity} {port_word(use.towards)}s of slice {name} are in use to {where}.",
    )


def _finding(observation: Observation, kind: Kind, use: Use, message: str) -> Finding:
    destination = destination_text(use.towards)
    zone = {"zone": use.zone} if use.zone else {}
    return Finding(
        kind,
        message,
        "Give the slice more ports under [[slice]] ports, or name a further slice in slices of the [[snat]] rule, "
        "and run natctl apply.",
        slice=observation.index.slice_name(use.slice_number),
        protocol=use.towards.protocol,
        subject=f"{destination} {use.zone}",
        extra={"destination": destination, "used": use.used, "capacity": use.capacity, **zone},
    )
