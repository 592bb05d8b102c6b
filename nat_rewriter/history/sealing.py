"""Sealing: a live part becomes a sealed one, and what is still open goes on in the next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nat_rewriter.history.directory import expired, list_parts, remove_part, sealed_path, size_of
from nat_rewriter.history.merging import carried, end_recording, merge
from nat_rewriter.history.parts import Journal, write_sealed
from nat_rewriter.history.records import EndMark, Records, Trait

Carry = Callable[[Records, int], None]


def seal(live: Path, carry: Carry | None) -> int:
    """Write a live part's records as a sealed part and delete it; return how many were still open.

    These are handed to ``carry`` first, with the time of the last sighting; without it nobody watched them further.
    """
    journal = Journal(live)
    records = merge(list(journal.batches()))
    still_open = carried(records)
    if carry is None:
        end_recording(records, journal.last_ns)
    elif len(still_open):
        carry(still_open, journal.last_ns)
    if len(records):
        low_ns, high_ns = _span(records, journal)
        write_sealed(sealed_path(live, low_ns, high_ns), records, journal.session, journal.slices)
    remove_part(live)
    return len(still_open)


def _span(records: Records, journal: Journal) -> tuple[int, int]:
    """Return from when to when this part is to be asked: what was carried over is in the part before as well."""
    starts = records["start_ns"][records["traits"] & Trait.CARRIED == 0]
    ends = records["end_ns"][records["end_mark"] != EndMark.OPEN]
    low_ns = min(journal.since_ns, int(starts.min(initial=journal.last_ns)))
    return low_ns, max(journal.last_ns, int(ends.max(initial=0)))


def remove_expired(directory: Path, now_ns: int, keep_ns: int | None, keep_bytes: int | None) -> int:
    """Delete the parts that are too old or too much; return how many."""
    parts = list_parts(directory)
    found = expired(parts, [size_of(part) for part in parts], now_ns, keep_ns, keep_bytes)
    for part in found:
        remove_part(part.path)
    return len(found)
