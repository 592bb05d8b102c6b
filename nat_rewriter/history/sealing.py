"""Sealing: the flows of a live part that have ended become a sealed part; the others go on in the next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nat_rewriter.history.directory import expired, list_parts, remove_part, sealed_path, size_of
from nat_rewriter.history.merging import end_recording, merge, parted
from nat_rewriter.history.parts import Journal, write_sealed
from nat_rewriter.history.records import Records

Carry = Callable[[Records, int], None]


def seal(live: Path, carry: Carry | None) -> int:
    """Write a live part's flows as a sealed part and delete it; return how many were still open.

    These are handed to ``carry`` first, with the time of the last sighting; without it nobody watched them further.
    """
    journal = Journal(live)
    records = merge(journal.batches())
    if carry is None:
        end_recording(records, journal.last_ns)
    ended, still_open = parted(records)
    if carry is not None and len(still_open):
        carry(still_open, journal.last_ns)
    if len(ended):
        path = sealed_path(live, int(ended["start_ns"].min()), int(ended["end_ns"].max()))
        write_sealed(path, ended, journal.session, journal.slices)
    remove_part(live)
    return len(still_open)


def remove_expired(directory: Path, now_ns: int, keep_ns: int | None, keep_bytes: int | None) -> int:
    """Delete the parts that are too old or too much; return how many."""
    parts = list_parts(directory)
    found = expired(parts, [size_of(part) for part in parts], now_ns, keep_ns, keep_bytes)
    for part in found:
        remove_part(part.path)
    return len(found)
