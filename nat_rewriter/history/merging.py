"""Merging: what was learnt of flows, in the order in which it was learnt, becomes one record a flow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from nat_rewriter.history.records import Column, EndMark, Records, Sighting, StartMark, Trait, empty, joined, picked

_ENDS = (int(Sighting.CLOSED), int(Sighting.GONE))


class Batch(NamedTuple):
    """Sightings that were written together. A complete batch has every flow that there was at its time."""

    sightings: Records
    time_ns: int
    complete: bool = False


def merge(batches: Iterable[Batch]) -> Records:
    """Return a record for each flow, in no order; those that have not ended are EndMark.OPEN."""
    sightings = joined(_with_absent(batches))
    order = np.argsort(sightings["flow"], kind="stable")
    begins, kept = _beginnings(sightings["flow"][order], sightings["sighting"][order], sightings["id"][order])
    order, begins = order[kept], begins[kept]
    first = np.flatnonzero(begins)
    if not len(first):
        return empty()
    last = np.append(first[1:], len(order)) - 1
    records, ends = picked(sightings, order[first]), picked(sightings, order[last])
    _write_ends(records, ends)
    _write_starts(records, ends)
    _end_replaced(records)
    _write_counters(records, ends)
    records["sighting"] = 0
    return records


def parted(records: Records) -> tuple[Records, Records]:
    """Return the records that have ended; and the others as sightings, to begin the next part with."""
    is_open = records["end_mark"] == EndMark.OPEN
    still = picked(records, np.flatnonzero(is_open))
    still["sighting"] = Sighting.SEEN
    return picked(records, np.flatnonzero(~is_open)), still


def end_recording(records: Records, time_ns: int) -> None:
    """Write into the records that have not ended that nobody watched from that time on."""
    still = records["end_mark"] == EndMark.OPEN
    records["end_mark"][still] = EndMark.RECORDING_ENDED
    records["end_ns"][still] = np.maximum(records["start_ns"][still], np.uint64(time_ns))


def _with_absent(batches: Iterable[Batch]) -> list[Records]:
    """Return the sightings; before a complete batch, that every earlier flow is gone that it does not have."""
    parts: list[Records] = []
    for batch in batches:
        if batch.complete and parts:
            known = np.unique(np.concatenate([part["flow"] for part in parts]))
            missing = np.setdiff1d(known, batch.sightings["flow"], assume_unique=False)
            gone = empty(len(missing))
            gone["flow"], gone["sighting"] = missing, Sighting.GONE
            gone["end_ns"], gone["end_mark"] = batch.time_ns, EndMark.SEEN_GONE
            parts.append(gone)
        parts.append(batch.sightings)
    return parts


def _beginnings(flows: Column, sightings: Column, ids: Column) -> tuple[Column, Column]:
    """Tell of each sighting whether a record begins with it, and whether it says anything.

    A flow begins when it is opened or seen and was not there before, or was there as another entry; and when it is
    closed although nothing was known of it.
    """
    ends = np.isin(sightings, _ENDS)
    there, other_entry = np.zeros((2, len(flows)), bool)
    there[1:] = (flows[1:] == flows[:-1]) & ~ends[:-1]
    other_entry[1:] = there[1:] & (ids[1:] != ids[:-1])
    begins = np.where(ends, (sightings == Sighting.CLOSED) & ~there, ~there | other_entry)
    return begins, begins | there


def _write_ends(records: Records, ends: Records) -> None:
    ended = ends["end_mark"] != EndMark.OPEN
    records["end_mark"] = np.where(ended, ends["end_mark"], EndMark.OPEN)
    records["end_ns"] = np.where(ended, np.maximum(ends["end_ns"], records["start_ns"]), 0)


def _write_starts(records: Records, ends: Records) -> None:
    """Write when flows began where only their end tells it: its event has the kernel's timestamps of both."""
    told = (ends["start_mark"] == StartMark.KERNEL) & (records["start_mark"] != StartMark.KERNEL)
    for field in ("start_ns", "start_mark"):
        records[field][told] = ends[field][told]
    unknown = records["start_mark"] == StartMark.UNKNOWN
    records["start_ns"][unknown] = records["end_ns"][unknown]


def _end_replaced(records: Records) -> None:
    """End a record that was still open when another entry was seen in its place."""
    replaced = np.flatnonzero(
        (records["flow"][:-1] == records["flow"][1:]) & (records["end_mark"][:-1] == EndMark.OPEN)
    )
    records["end_mark"][replaced] = EndMark.SEEN_GONE
    records["end_ns"][replaced] = np.maximum(records["start_ns"][replaced + 1], records["start_ns"][replaced])


def _write_counters(records: Records, ends: Records) -> None:
    counted = ends["traits"] & Trait.COUNTED != 0
    for field in ("packets", "bytes"):
        records[field][counted] = ends[field][counted]
    records["traits"][counted] |= int(Trait.COUNTED)
