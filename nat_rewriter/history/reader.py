"""Asking a history: which flows had an address, and when. A recorder may be at work meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nat_rewriter.errors import StateError
from nat_rewriter.history.directory import Part, is_written, list_parts
from nat_rewriter.history.merging import end_recording, merge
from nat_rewriter.history.pages import Places, places_of
from nat_rewriter.history.parts import Journal, Wanted, read_sealed
from nat_rewriter.history.records import EndMark, Records, empty, key_bytes, picked
from nat_rewriter.model.slices import Address

END_OF_TIME = (1 << 63) - 1
_HALF = (1 << 64) - 1
_ATTEMPTS = 5


@dataclass(frozen=True)
class Question:
    """Flows that had an address, and a port if given, at the end ``end``, at some moment of a span of time."""

    end: str  # wire or client
    address: Address
    port: int | None = None
    protocols: frozenset[int] = frozenset()  # empty: any
    remote: Address | None = None
    remote_port: int | None = None
    since_ns: int = 0
    until_ns: int = END_OF_TIME

    @cached_property
    def wanted(self) -> Wanted:
        """Return what is to be read of a part."""
        family, number = self.address.version, int(self.address)
        first, last = (0, 0xFFFF) if self.port is None else (self.port, self.port)
        keys = key_bytes(family, number, first, 0), key_bytes(family, number, last, 0xFF)
        return Wanted(self.end, *keys, self.since_ns, self.until_ns, self._places())

    def _places(self) -> Places:
        """Return the bytes that the records have in common."""
        wanted, fields = empty(1), ["family", self.end]
        wanted["family"], wanted[self.end] = self.address.version, _halves(self.address)
        if self.port is not None:
            wanted[f"{self.end}_port"] = self.port
            fields.append(f"{self.end}_port")
        if self.remote is not None:
            wanted["remote"] = _halves(self.remote)
            fields.append("remote")
        if self.remote_port is not None:
            wanted["remote_port"] = self.remote_port
            fields.append("remote_port")
        return places_of(wanted, fields)


def _halves(address: Address) -> tuple[int, int]:
    return int(address) >> 64, int(address) & _HALF


class Found(NamedTuple):
    """Flows in the order of their starts, and the names of the slices by the number in them, less one."""

    records: Records
    slices: tuple[str, ...]


def find(directory: Path, question: Question) -> Iterator[Found]:
    """Yield the flows, part by part, in the order in which they ended; those that are open last. Raises StateError.

    What has not ended is EndMark.OPEN as long as a recorder is at work.
    """
    sealed, journals = _look(directory)
    for part in sealed:
        if part.overlaps(question.since_ns, question.until_ns):
            yield from _answer(*read_sealed(part.path, question.wanted), question)
    written = is_written(directory)
    sessions = [list(group) for _, group in groupby(journals, key=lambda journal: journal.session)]
    for group in sessions:
        records, last_ns = _read_journals(group, question)
        if not written or group is not sessions[-1]:
            end_recording(records, last_ns)
        yield from _answer(records, group[0].slices, question)


def _answer(records: Records, slices: tuple[str, ...], question: Question) -> Iterator[Found]:
    if not len(records):
        return
    ends = np.where(records["end_mark"] == EndMark.OPEN, np.uint64(END_OF_TIME), records["end_ns"])
    asked = (records["start_ns"] <= question.until_ns) & (ends >= question.since_ns)
    if question.protocols:
        asked &= np.isin(records["protocol"], list(question.protocols))
    order = np.lexsort((records["start_ns"], ends))
    if asked.any():
        yield Found(picked(records, order[asked[order]]), slices)


def _look(directory: Path) -> tuple[list[Part], list[Journal]]:
    """Return sealed parts, and what the live ones have; again, when one was sealed just then."""
    is_written(directory)  # says so where there is no history
    for attempt in range(_ATTEMPTS):
        parts = list_parts(directory)
        live = [part for part in parts if part.live]
        try:
            return [part for part in parts if not part.live], [Journal(part.path) for part in live]
        except StateError:
            if attempt == _ATTEMPTS - 1 or all(part.path.exists() for part in live):
                raise
    raise AssertionError


def _read_journals(journals: Sequence[Journal], question: Question) -> tuple[Records, int]:
    """Return the records that parts of one recorder make together."""
    # What was carried into the second is in the first.
    batches = (
        batch
        for number, journal in enumerate(journals)
        for batch in journal.batches(question.wanted.having, carried=number == 0)
    )
    return merge(batches), journals[-1].last_ns
