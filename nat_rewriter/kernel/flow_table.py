"""The current conntrack table, kept from a dump and the events since.

Records (fields of FLOW_FIELDS) come in batches and are kept in one numpy array; the C core knows which row has a key.
Subscribe to events first, then dump: what happens while the dump runs is kept beside it, and wins over it.

After events were lost the table is STALE. Getting it right again::

    table.mark_stale()
    while not batch.drained: table.apply(...)  # what was queued before is older than the dump will be
    table.begin_resync()
    for part in dump: table.take_dump(part); table.apply(...)  # events that arrived meanwhile
    table.finish_resync()
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np

from nat_rewriter.flowtable import Applied, Records, ResyncResult, TableState
from nat_rewriter.kernel._core._native import ffi, lib
from nat_rewriter.kernel.conntrack_records import FLOW_DTYPE
from nat_rewriter.model.flows import Event, Present

Rows = np.ndarray[Any, np.dtype[np.intp]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Brought = np.ndarray[Any, np.dtype[np.uint16]]

# What an event of a change brings, by the bit of `present` that tells whether it does.
_BROUGHT = {
    Present.STATUS: ("status",),
    Present.TIMEOUT: ("timeout_s",),
    Present.TCP_STATE: ("tcp_state",),
    Present.MARK: ("mark",),
    Present.ID: ("id",),
    Present.COUNTERS: ("packets", "bytes"),
    Present.TIMESTAMP: ("start_ns", "stop_ns"),
}
_REPLY = ("reply_src", "reply_dst", "reply_sport", "reply_dport")
# An entry that differs in one of these was changed; timeouts and counters run by themselves.
_SIGNIFICANT = ("status", "mark", "tcp_state", "id", *_REPLY)
# Beside the bits of Present: an event was about this entry, or the dump had it, since the resync began.
# The dump alone has told of the entry: it was missed.
_TOUCHED, _DUMPED, _ADDED = 1 << 15, 1 << 14, 1 << 13
_ALL_BROUGHT = 0xFFFF & ~(_DUMPED | _ADDED)
_PART_RECORDS = 1 << 16
_FIRST_ROWS = 1024
# Copying whole records by index: as opaque bytes it is fifteen times faster than field by field, which is what numpy
# does with a structured type.
_OPAQUE = np.dtype((np.void, FLOW_DTYPE.itemsize))


class Judge(Protocol):
    """Learns of every entry that comes and goes, and says of each that comes whether it is one to be seen."""

    def add(self, records: Records) -> Mask:
        """Take in entries that came; tell of each whether it is to be seen."""

    def remove(self, records: Records) -> None:
        """Take in entries that went."""


class FlowTable:
    """The entries of one network namespace, at most ``max_entries`` of them."""

    def __init__(self, max_entries: int = 1 << 22, judge: Judge | None = None) -> None:
        self.max_entries = max_entries
        self.refused = 0  # entries that did not fit, since the last resync began
        handle = lib.nr_index_new(max_entries)
        if handle == ffi.NULL:
            raise MemoryError
        self._index = ffi.gc(handle, lib.nr_index_free)
        self._judge = judge
        self._store = np.zeros(min(_FIRST_ROWS, max(max_entries, 1)), FLOW_DTYPE)
        self._active = np.zeros(len(self._store), np.bool_)
        self._seen = np.zeros(len(self._store), np.bool_)  # by the judge's word
        self._told = np.zeros(len(self._store), np.bool_)  # an event was about the entry, ever
        self._brought = np.zeros(len(self._store), np.uint16)
        self._changed: list[Records] = []  # by the word of the dump
        self.state = TableState.STALE
        self.begin_resync()

    def __len__(self) -> int:
        return int(lib.nr_index_count(self._index))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, int) and lib.nr_index_find(self._index, key) >= 0

    @property
    def exceeded(self) -> bool:
        """Whether entries are missing because the table was full."""
        return self.refused > 0

    def find(self, key: int) -> np.void | None:
        """Return the entry of a key, or None."""
        row = lib.nr_index_find(self._index, int(key))
        return None if row < 0 else self._store[row].copy()

    def records(self) -> Records:
        """Return all entries, in no order, as an array of their own."""
        return _pick(self._store, np.flatnonzero(self._active))

    def seen(self) -> Records:
        """Return the entries that the judge said are to be seen."""
        return _pick(self._store, np.flatnonzero(self._seen))

    def count_untold(self) -> int:
        """Return how many entries a dump alone has told of: they may end without an event (see EventStream)."""
        return int(np.count_nonzero(self._active & ~self._told))

    def apply(self, records: Records) -> Applied:
        """Take in events, in the order they came, and tell what they did to the table."""
        steps = self._step(lib.nr_index_apply, records)
        new = _pick(records, steps.new_at)
        self._write_new(steps.new_rows, new, _brought_by(new) if self._journaling else 0)
        self._told[steps.new_rows] = True
        self._merge(steps.old_rows, _pick(records, steps.old_at))
        seen = steps.new_rows[self._seen[steps.new_rows]]
        applied = Applied(*(_pick(self._store, rows) for rows in (steps.new_rows, steps.gone_rows, seen)))
        self._release(steps.gone_rows)
        if lib.nr_index_overflown(self._index):  # the dump would bring back what has ended: the resync is in vain
            self.mark_stale()
        return applied

    def mark_stale(self) -> None:
        """Note that events were lost: the table is not the kernel's until a resync that begins after this."""
        self.state = TableState.STALE

    def begin_resync(self) -> None:
        """Expect a dump. To be called after the events queued so far were applied, and before the dump is asked for.

        A table that is LIVE stays so: it is merely compared.
        """
        if self.state is TableState.STALE:
            self.state = TableState.SYNCING
        self.refused = 0
        self._journal(wanted=True)
        self._brought[:] = 0
        self._changed = []

    def take_dump(self, records: Records) -> None:
        """Take in a part of the dump. What events have told since the resync began is newer, and stays."""
        steps = self._step(lib.nr_index_dump, records)
        # New ones first: an entry that the dump has twice may be new and known.
        self._write_new(steps.new_rows, _pick(records, steps.new_at), _DUMPED | _ADDED)
        self._compare(steps.old_rows, _pick(records, steps.old_at))

    def load(self, parts: Iterable[Records]) -> None:
        """Take in a whole dump, the first one: nobody wants to be told what is new in it."""
        for part in parts:
            self.take_dump(part)
        self._brought &= ~np.uint16(_ADDED)
        self.finish_resync()

    def finish_resync(self) -> ResyncResult:
        """Remove what neither dump nor event had; the table is LIVE then, unless it was marked stale meanwhile."""
        added = _pick(self._store, np.flatnonzero(self._brought & _ADDED))
        gone = np.flatnonzero(self._active & (self._brought == 0))
        removed = _pick(self._store, gone)
        keys = removed["key"].copy()
        lib.nr_index_remove(self._index, ffi.from_buffer("uint64_t[]", keys), len(keys))
        self._release(gone)
        if self.state is TableState.SYNCING:
            self.state = TableState.LIVE
        result = ResyncResult(added, removed, _joined(self._changed))
        self.abandon_resync()
        return result

    def abandon_resync(self) -> None:
        """Expect no more of the dump; what it had so far stays."""
        self._journal(wanted=False)
        self._changed = []

    def resync(self, dump: Records) -> ResyncResult:
        """Take in a whole dump and finish."""
        for start in range(0, len(dump), _PART_RECORDS):
            self.take_dump(dump[start : start + _PART_RECORDS])
        return self.finish_resync()

    def _journal(self, *, wanted: bool) -> None:
        """Remember what ends, or end to do so."""
        self._journaling = wanted
        lib.nr_index_journal(self._index, wanted)

    def _step(self, take: Any, records: Records) -> _Steps:
        """Find the row of each record: entries come and go here, their content is written afterwards.

        A row that is given up is not used again within the batch, so that the order of records does not matter then.
        """
        places = np.empty((5, len(records)), np.intp)
        steps = ffi.new("struct nr_steps *")
        rooms = [ffi.from_buffer("int64_t[]", place, require_writable=True) for place in places]
        steps.new_rows, steps.new_at, steps.old_rows, steps.old_at, steps.gone_rows = rooms
        if take(self._index, ffi.from_buffer("struct nr_flow[]", records.view("u1")), len(records), steps) < 0:
            raise MemoryError
        self.refused += steps.refused
        self._grow()
        counts = (steps.new_count, steps.new_count, steps.old_count, steps.old_count, steps.gone_count)
        return _Steps(*(place[:count] for place, count in zip(places, counts, strict=True)))

    def _grow(self) -> None:
        size, used = len(self._store), lib.nr_index_rows(self._index)
        while size < used:
            size *= 2
        if size > len(self._store):
            for array in (self._store, self._active, self._seen, self._told, self._brought):
                array.resize(size, refcheck=False)  # nothing outside refers to them; new rows are zero

    def _release(self, rows: Rows) -> None:
        if self._judge:
            self._judge.remove(_pick(self._store, rows))
        self._active[rows] = self._seen[rows] = self._told[rows] = False
        self._brought[rows] = 0
        if lib.nr_index_release(self._index, ffi.from_buffer("int64_t[]", rows), len(rows)) < 0:
            raise MemoryError

    def _write_new(self, rows: Rows, records: Records, brought: int | Brought) -> None:
        self._overwrite(rows, records)
        self._active[rows] = True
        self._brought[rows] = brought
        if self._judge:
            self._seen[rows] = self._judge.add(records)

    def _overwrite(self, rows: Rows, records: Records) -> None:
        self._store.view(_OPAQUE)[rows] = records.view(_OPAQUE)
        self._store["event"][rows] = Event.DUMP

    def _merge(self, rows: Rows, records: Records) -> None:
        """Write what events of a change brought. A row that comes twice keeps the last of each field."""
        if not len(rows):
            return
        self._told[rows] = True
        for bit, fields in _BROUGHT.items():
            has = records["present"] & bit != 0
            if has.all():
                self._write_fields(fields, rows, records)
            elif has.any():
                self._write_fields(fields, rows[has], _pick(records, has))
        np.bitwise_or.at(self._store["present"], rows, records["present"])
        if self._journaling:
            np.bitwise_or.at(self._brought, rows, records["present"] | _TOUCHED)

    def _write_fields(self, fields: tuple[str, ...], rows: Rows, records: Records) -> None:
        for field in fields:
            self._store[field][rows] = records[field]

    def _compare(self, rows: Rows, records: Records) -> None:
        """Write dumped entries over those the table has, but for what events brought; note which were changed."""
        brought = self._brought[rows]
        changed = np.flatnonzero((brought == 0) & self._differs(rows, records))
        if len(changed):
            self._changed.append(_pick(records, changed))
        touched = brought & _TOUCHED != 0
        self._fill_unbrought(rows[touched], _pick(records, touched))
        # An entry that the dump has twice is changed once.
        changed_rows = np.unique(rows[changed]) if len(changed) else changed
        self._judge_again(rows[~touched], _pick(records, ~touched), changed_rows)
        self._brought[rows] |= _DUMPED

    def _judge_again(self, rows: Rows, records: Records, changed: Rows) -> None:
        if self._judge and len(changed):
            self._judge.remove(_pick(self._store, changed))
        self._overwrite(rows, records)
        if self._judge and len(changed):
            self._seen[changed] = self._judge.add(_pick(self._store, changed))

    def _differs(self, rows: Rows, records: Records) -> Mask:
        differs = np.zeros(len(rows), np.bool_)
        for field in _SIGNIFICANT:
            unequal = self._store[field][rows] != records[field]
            differs |= unequal if unequal.ndim == 1 else unequal.any(axis=1)
        return differs

    def _fill_unbrought(self, rows: Rows, records: Records) -> None:
        for bit, fields in _BROUGHT.items():
            lacks = self._brought[rows] & bit == 0
            if lacks.any():
                self._write_fields(fields, rows[lacks], _pick(records, lacks))
        self._store["present"][rows] |= records["present"]


class _Steps(NamedTuple):
    """Rows, and the places in a batch of the records that write to them."""

    new_rows: Rows
    new_at: Rows
    old_rows: Rows
    old_at: Rows
    gone_rows: Rows


def _brought_by(records: Records) -> Brought:
    """Return what the first event of an entry brings: all, unless it is a change of an entry that was not known."""
    partly = records["event"] == Event.UPDATE
    brought: Brought = np.where(partly, records["present"] | _TOUCHED, _ALL_BROUGHT).astype(np.uint16)
    return brought


def _joined(parts: list[Records]) -> Records:
    return np.concatenate([part.view(_OPAQUE) for part in parts] or [np.empty(0, _OPAQUE)]).view(FLOW_DTYPE)


def _pick(records: Records, which: Rows | Mask) -> Records:
    """Return ``records[which]``, fast."""
    return records.view(_OPAQUE)[which].view(FLOW_DTYPE)
