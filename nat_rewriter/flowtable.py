"""The current conntrack table, kept from a dump and the events since.

Records (fields of FLOW_FIELDS) come in batches and are kept in one numpy array; a dictionary finds the row of a key.
Subscribe to events first, then dump: what happens while the dump runs is kept beside it, and wins over it.

After events were lost the table is STALE. Getting it right again::

    table.mark_stale()
    while not batch.drained: table.apply(...)  # what was queued before is older than the dump will be
    table.begin_resync()
    for part in dump: table.take_dump(part); table.apply(...)  # events that arrived meanwhile
    table.finish_resync()
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import numpy as np

from nat_rewriter.model.flows import FLOW_FIELDS, Event, Present

Records = np.ndarray[Any, np.dtype[np.void]]
Rows = np.ndarray[Any, np.dtype[np.intp]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Brought = np.ndarray[Any, np.dtype[np.uint16]]

RECORD_DTYPE = np.dtype(FLOW_FIELDS)
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
_TOUCHED, _DUMPED = 1 << 15, 1 << 14
_ALL_BROUGHT = 0xFFFF & ~_DUMPED
_PART_RECORDS = 1 << 16
_FIRST_ROWS = 1024
# Copying whole records by index: as opaque bytes it is fifteen times faster than field by field, which is what numpy
# does with a structured type.
_OPAQUE = np.dtype((np.void, RECORD_DTYPE.itemsize))
_UPDATE, _DESTROY = int(Event.UPDATE), int(Event.DESTROY)
_MULTIPLIER, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(32)
_PORT_OF = {
    "orig_src": "orig_sport",
    "orig_dst": "orig_dport",
    "reply_src": "reply_sport",
    "reply_dst": "reply_dport",
}


class TableState(enum.Enum):
    """How far the table can be trusted."""

    SYNCING = "syncing"  # a dump is under way
    LIVE = "live"  # equals the kernel's, but for events not yet read
    STALE = "stale"  # events were lost


class Applied(NamedTuple):
    """What a batch of events did: entries as they are after it; those removed as they were last."""

    added: Records
    changed: Records
    removed: Records


class ResyncResult(NamedTuple):
    """What the dump showed that no event had told: entries as the dump has them; those removed as they were last."""

    added: Records
    removed: Records
    changed: Records


class FlowTable:
    """The entries of one network namespace, at most ``max_entries`` of them."""

    def __init__(self, max_entries: int = 1 << 22) -> None:
        self.max_entries = max_entries
        self.refused = 0  # entries that did not fit, since the last resync began
        self._rows: dict[int, int] = {}
        self._free: list[int] = []
        self._used = 0  # rows ever handed out
        self._store = np.zeros(min(_FIRST_ROWS, max(max_entries, 1)), RECORD_DTYPE)
        self._active = np.zeros(len(self._store), np.bool_)
        self._brought = np.zeros(len(self._store), np.uint16)
        self._replies = np.zeros(len(self._store), np.uint64)  # fingerprints of reply tuples
        self._destroyed: set[int] = set()  # by events since the resync began
        self._journaling = False
        self._found = _Found([], [])
        self.begin_resync()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    @property
    def exceeded(self) -> bool:
        """Whether entries are missing because the table was full."""
        return self.refused > 0

    def find(self, key: int) -> np.void | None:
        """Return the entry of a key, or None."""
        row = self._rows.get(int(key))
        return None if row is None else self._store[row].copy()

    def records(self) -> Records:
        """Return all entries, in no order, as an array of their own."""
        return _pick(self._store, np.flatnonzero(self._active))

    def find_holders(self, claims: Records) -> list[np.void | None]:
        """For each record, return the other entry that is answered on that record's original tuple, or None.

        That is the entry whose reply tuple goes from the record's original destination to its original source. One
        pass over the table, however many records are asked for.
        """
        hits = np.isin(self._replies[: self._used], _fingerprints(claims, "orig_src", "orig_dst"))
        candidates = _pick(self._store[: self._used], np.flatnonzero(hits & self._active[: self._used]))
        by_reply: dict[tuple[int, ...], list[int]] = {}
        for index, record in enumerate(candidates):
            by_reply.setdefault(_end_points(record, "reply_dst", "reply_src"), []).append(index)
        return [_first_other(candidates, by_reply, claim) for claim in claims]

    def apply(self, records: Records) -> Applied:
        """Take in events, in the order they came, and tell what they did to the table."""
        steps = self._place(records["key"].tolist(), records["event"].tolist())
        new = _pick(records, steps.new_at)
        self._write_new(steps.new_rows, new, _brought_by(new) if self._journaling else 0)
        self._merge(np.array(steps.old_rows, np.intp), _pick(records, steps.old_at))
        changed = set(steps.old_rows).difference(steps.new_rows, steps.gone_rows)
        applied = Applied(*(_pick(self._store, list(rows)) for rows in (steps.new_rows, changed, steps.gone_rows)))
        self._release(steps.gone_rows)
        return applied

    def mark_stale(self) -> None:
        """Note that events were lost: the table is not the kernel's until a resync that begins after this."""
        self.state = TableState.STALE

    def begin_resync(self) -> None:
        """Expect a dump. To be called after the events queued so far were applied, and before the dump is asked for."""
        self.state = TableState.SYNCING
        self.refused = 0
        self._journaling = True
        self._destroyed.clear()
        self._brought[:] = 0
        self._found = _Found([], [])

    def take_dump(self, records: Records) -> None:
        """Take in a part of the dump. What events have told since the resync began is newer, and stays."""
        at = dict(zip(records["key"].tolist(), range(len(records)), strict=True))
        rows = self._rows
        known = [(rows[key], place) for key, place in at.items() if key in rows]
        new = [(key, place) for key, place in at.items() if key not in rows and key not in self._destroyed]
        self._compare([row for row, _ in known], _pick(records, [place for _, place in known]))
        self._add_dumped([key for key, _ in new], _pick(records, [place for _, place in new]))

    def finish_resync(self) -> ResyncResult:
        """Remove what neither dump nor event had; the table is LIVE then, unless it was marked stale meanwhile."""
        rows = np.fromiter(self._rows.values(), np.intp, len(self._rows))
        gone = rows[self._brought[rows] == 0].tolist()
        removed = _pick(self._store, gone)
        for key in removed["key"].tolist():
            del self._rows[key]
        self._release(gone)
        self._journaling = False
        self._destroyed.clear()
        if self.state is TableState.SYNCING:
            self.state = TableState.LIVE
        found, self._found = self._found, _Found([], [])
        return ResyncResult(_joined(found.added), removed, _joined(found.changed))

    def resync(self, dump: Records) -> ResyncResult:
        """Take in a whole dump and finish."""
        for start in range(0, len(dump), _PART_RECORDS):
            self.take_dump(dump[start : start + _PART_RECORDS])
        return self.finish_resync()

    def _place(self, keys: list[int], events: list[int]) -> _Steps:
        """Find the row of each event: entries come and go here, their content is written afterwards.

        A row that is given up is not used again within the batch, so that the order of events does not matter then.
        """
        steps = _Steps([], [], [], [], [])
        rows = self._rows
        for at, (key, event) in enumerate(zip(keys, events, strict=True)):
            row = rows.get(key)
            if event == _DESTROY:
                self._forget(key, row, at, steps)
            elif row is not None and event == _UPDATE:
                steps.old_rows.append(row)
                steps.old_at.append(at)
            else:
                self._enter(key, row, at, steps)
        self._grow()
        return steps

    def _forget(self, key: int, row: int | None, at: int, steps: _Steps) -> None:
        if self._journaling:
            self._note_destroyed(key)
        if row is None:
            return
        del self._rows[key]
        # Its last event has the final counters.
        steps.old_rows.append(row)
        steps.old_at.append(at)
        steps.gone_rows.append(row)

    def _enter(self, key: int, row: int | None, at: int, steps: _Steps) -> None:
        if row is not None:  # its end was not told, or the dump was faster than its beginning
            del self._rows[key]
            steps.gone_rows.append(row)
        self._destroyed.discard(key)
        row = self._take_row(key)
        if row is not None:
            steps.new_rows.append(row)
            steps.new_at.append(at)

    def _note_destroyed(self, key: int) -> None:
        """Remember what the dump must not bring back; when that is too much to remember, the resync is in vain."""
        if len(self._destroyed) < self.max_entries:
            self._destroyed.add(key)
        else:
            self.mark_stale()

    def _take_row(self, key: int) -> int | None:
        """Return a row for a new entry, or None when the table is full. The store may have to grow for it."""
        if len(self._rows) >= self.max_entries:
            self.refused += 1
            return None
        if self._free:
            row = self._free.pop()
        else:
            row = self._used
            self._used += 1
        self._rows[key] = row
        return row

    def _grow(self) -> None:
        size = len(self._store)
        while size < self._used:
            size *= 2
        if size > len(self._store):
            for array in (self._store, self._active, self._brought, self._replies):
                array.resize(size, refcheck=False)  # nothing outside refers to them; new rows are zero

    def _release(self, rows: list[int]) -> None:
        self._active[rows] = False
        self._brought[rows] = 0
        self._free.extend(rows)

    def _write_new(self, rows: list[int], records: Records, brought: int | Brought) -> None:
        self._overwrite(rows, records)
        self._active[rows] = True
        self._brought[rows] = brought

    def _overwrite(self, rows: list[int] | Rows, records: Records) -> None:
        self._store.view(_OPAQUE)[rows] = records.view(_OPAQUE)
        self._store["event"][rows] = Event.DUMP
        self._replies[rows] = _fingerprints(records, "reply_dst", "reply_src")

    def _merge(self, rows: Rows, records: Records) -> None:
        """Write what events of a change brought. A row that comes twice keeps the last of each field."""
        if not len(rows):
            return
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

    def _compare(self, known: list[int], records: Records) -> None:
        """Write dumped entries over those the table has, but for what events brought; note which were changed."""
        rows = np.array(known, np.intp)
        brought = self._brought[rows]
        unseen = brought == 0
        self._found.changed.append(_pick(records, unseen & self._differs(rows, records)))
        touched = brought & _TOUCHED != 0
        self._fill_unbrought(rows[touched], _pick(records, touched))
        self._overwrite(rows[~touched], _pick(records, ~touched))
        self._brought[rows] |= _DUMPED

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

    def _add_dumped(self, keys: list[int], records: Records) -> None:
        rows = [row for row in map(self._take_row, keys) if row is not None]
        self._grow()
        # Once the table is full it stays so: those that found a row are the first.
        added = records[: len(rows)]
        self._write_new(rows, added, _DUMPED)
        self._found.added.append(added)


class _Steps(NamedTuple):
    """Rows, and the places in a batch of the events that write to them."""

    new_rows: list[int]
    new_at: list[int]
    old_rows: list[int]
    old_at: list[int]
    gone_rows: list[int]


class _Found(NamedTuple):
    """What a dump has shown so far."""

    added: list[Records]
    changed: list[Records]


def _brought_by(records: Records) -> Brought:
    """Return what the first event of an entry brings: all, unless it is a change of an entry that was not known."""
    partly = records["event"] == Event.UPDATE
    brought: Brought = np.where(partly, records["present"] | _TOUCHED, _ALL_BROUGHT).astype(np.uint16)
    return brought


def _joined(parts: list[Records]) -> Records:
    return np.concatenate([part.view(_OPAQUE) for part in parts] or [np.empty(0, _OPAQUE)]).view(RECORD_DTYPE)


def _pick(records: Records, which: list[int] | Rows | Mask) -> Records:
    """Return ``records[which]``, fast."""
    return records.view(_OPAQUE)[which].view(RECORD_DTYPE)


def _fingerprints(records: Records, src: str, dst: str) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Return one number for each record's tuple from ``src`` to ``dst``; equal tuples have equal ones."""
    numbers = np.zeros(len(records), np.uint64)
    ends = (*records[src].T, records[_PORT_OF[src]], *records[dst].T, records[_PORT_OF[dst]])
    for part in (*ends, records["protocol"], records["zone"]):
        numbers = (numbers ^ part) * _MULTIPLIER
        numbers ^= numbers >> _SHIFT
    return numbers


def _end_points(record: Any, src: str, dst: str) -> tuple[int, ...]:
    """Return what makes a tuple: protocol, family, zone and both ends."""
    ends = (part for end in (src, dst) for part in (*record[end].tolist(), int(record[_PORT_OF[end]])))
    return (int(record["protocol"]), int(record["family"]), int(record["zone"]), *ends)


def _first_other(candidates: Records, by_reply: dict[tuple[int, ...], list[int]], claim: Any) -> np.void | None:
    for index in by_reply.get(_end_points(claim, "orig_src", "orig_dst"), ()):
        if candidates[index]["key"] != claim["key"]:
            holder: np.void = candidates[index].copy()
            return holder
    return None
