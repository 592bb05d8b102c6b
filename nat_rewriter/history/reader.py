"""Asking a history: which flows had an address, and when. A recorder may be at work meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nat_rewriter.errors import StateError
from nat_rewriter.history.directory import Part, is_written, list_parts
from nat_rewriter.history.merging import Batch, end_recording, merge
from nat_rewriter.history.pages import Places, places_of
from nat_rewriter.history.parts import Journal, KeyRange, read_sealed
from nat_rewriter.history.records import Column, EndMark, Records, empty, key_bytes, key_of, picked
from nat_rewriter.model.slices import Address

END_OF_TIME = (1 << 63) - 1
_HALF = (1 << 64) - 1
_ATTEMPTS = 5
# Flows that are open at the end of a part are looked for one by one in the next, unless they are that many.
_FEW = 32


@dataclass(frozen=True, slots=True)
class Question:
    """Flows that had an address, and a port if given, at the end ``end``, at some moment of a time."""

    end: str  # wire or client
    address: Address
    port: int | None = None
    protocols: frozenset[int] = frozenset()  # empty: any
    remote: Address | None = None
    remote_port: int | None = None
    since_ns: int = 0
    until_ns: int = END_OF_TIME

    @property
    def keys(self) -> KeyRange:
        """Return the first and the last key that it asks for."""
        family, number = self.address.version, int(self.address)
        first, last = (0, 0xFFFF) if self.port is None else (self.port, self.port)
        return key_bytes(family, number, first, 0), key_bytes(family, number, last, 0xFF)

    @property
    def having(self) -> Places:
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


class Found(NamedTuple):
    """Flows in the order of their starts, and the names of the slices by the number in them, less one."""

    records: Records
    slices: tuple[str, ...]


def find(directory: Path, question: Question) -> Iterator[Found]:
    """Yield the flows, part by part in the order of time, each flow once. Raises StateError.

    What is still open is EndMark.OPEN as long as a recorder is at work.
    """
    sealed, journals = _look(directory)
    chain = _Chain(question)
    for part in sealed:
        if part.overlaps(question.since_ns, question.until_ns) or len(chain.held):
            records, slices = read_sealed(part.path, question.end, chain.keys(part), question.having)
            yield from chain.link(_of_protocols(records, question), slices, part.high_ns)
    written = is_written(directory)
    for number, (_, group) in enumerate(sessions := _sessions(journals), start=1):
        records, last_ns = _read_journals(group, question)
        if not written or number < len(sessions):
            end_recording(records, last_ns)
        yield from chain.link(records, group[0].slices, last_ns)
    yield from chain.finish(still_open=written and bool(journals))


def _halves(address: Address) -> tuple[int, int]:
    return int(address) >> 64, int(address) & _HALF


class _Chain:
    """Follows flows that are open at the end of a part into the next one, where they are again."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self.held = empty()
        self._slices: tuple[str, ...] = ()
        self._high_ns = 0

    def keys(self, part: Part) -> list[KeyRange]:
        """Return what is to be read of a part: all that is asked for, or only what is followed."""
        asked = self._question
        if part.overlaps(asked.since_ns, asked.until_ns) or asked.port is not None or len(self.held) > _FEW:
            return [asked.keys]
        return [(key, key) for key in (key_of(record, asked.end) for record in self.held)]

    def link(self, records: Records, slices: tuple[str, ...], high_ns: int) -> Iterator[Found]:
        """Take in what a part has; yield what is settled."""
        lost = picked(self.held, np.flatnonzero(~_is_among(self.held, records)))
        if len(lost):
            end_recording(lost, self._high_ns)
            yield from self._found(lost, self._slices)
        is_open = records["end_mark"] == EndMark.OPEN
        settled = picked(records, np.flatnonzero(~is_open))
        self.held, self._slices, self._high_ns = self._timely(picked(records, np.flatnonzero(is_open))), slices, high_ns
        yield from self._found(settled, slices)

    def finish(self, *, still_open: bool) -> Iterator[Found]:
        """Yield what is left."""
        if not still_open:
            end_recording(self.held, self._high_ns)
        yield from self._found(self.held, self._slices)

    def _found(self, records: Records, slices: tuple[str, ...]) -> Iterator[Found]:
        records = self._timely(records)
        if len(records):
            yield Found(picked(records, np.argsort(records["start_ns"], kind="stable")), slices)

    def _timely(self, records: Records) -> Records:
        question = self._question
        ends = np.where(records["end_mark"] == EndMark.OPEN, np.uint64(END_OF_TIME), records["end_ns"])
        timely = (records["start_ns"] <= question.until_ns) & (ends >= question.since_ns)
        return picked(records, np.flatnonzero(timely))


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


def _sessions(journals: Sequence[Journal]) -> list[tuple[str, list[Journal]]]:
    return [(name, list(group)) for name, group in groupby(journals, key=lambda journal: journal.session)]


def _read_journals(journals: Sequence[Journal], question: Question) -> tuple[Records, int]:
    """Return the records that parts of one recorder make together."""
    batches = [
        Batch(_of_protocols(batch.sightings, question), batch.time_ns, batch.complete)
        for number, journal in enumerate(journals)
        # What was carried into the second is in the first.
        for batch in journal.batches(question.having, carried=number == 0)
    ]
    return merge(batches), journals[-1].last_ns


def _of_protocols(records: Records, question: Question) -> Records:
    if not question.protocols:
        return records
    return picked(records, np.flatnonzero(np.isin(records["protocol"], list(question.protocols))))


def _is_among(records: Records, others: Records) -> Column:
    """Tell of each record whether the others have the same flow."""
    if not len(records):
        return np.zeros(0, bool)
    there = set(_identities(others))
    return np.fromiter((identity in there for identity in _identities(records)), bool, len(records))


def _identities(records: Records) -> Iterator[tuple[int, int]]:
    return zip(records["flow"].tolist(), records["start_ns"].tolist(), strict=True)
