"""The flow table against a model of the kernel: whatever the order of events, dumps and losses, they end up equal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nat_rewriter.flowtable import TableState
from nat_rewriter.kernel.conntrack_records import FLOW_DTYPE as RECORD_DTYPE
from nat_rewriter.kernel.flow_table import FlowTable
from nat_rewriter.model.flows import Event, Present

ALWAYS = Present.STATUS | Present.ID | Present.TIMEOUT
EVERYTHING = ALWAYS | Present.TCP_STATE | Present.MARK | Present.COUNTERS


def record(key: int, event: Event = Event.DUMP, present: Present = EVERYTHING, **values: Any) -> np.ndarray[Any, Any]:
    one = np.zeros(1, RECORD_DTYPE)
    one["key"], one["event"], one["present"] = key, event, present
    for name, value in values.items():
        one[name] = value
    return one


def records(*parts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.concatenate(parts) if parts else np.empty(0, RECORD_DTYPE)


def live_table(*parts: np.ndarray[Any, Any], max_entries: int = 100) -> FlowTable:
    table = FlowTable(max_entries)
    table.resync(records(*parts))
    return table


def keys_of(found: np.ndarray[Any, Any]) -> list[int]:
    return sorted(found["key"].tolist())


@dataclass
class Entry:
    id: int
    status: int = 8
    mark: int = 0
    tcp_state: int = 1


@dataclass
class Kernel:
    """A conntrack table of a few possible tuples, and a socket buffer that holds ``room`` events."""

    room: int
    entries: dict[int, Entry] = field(default_factory=dict)
    queue: list[np.ndarray[Any, Any]] = field(default_factory=list)
    lost: int = 0
    ids: int = 0

    def tell(self, key: int, event: Event, present: Present) -> None:
        if len(self.queue) >= self.room:
            self.lost += 1
        else:
            values = vars(self.entries[key])
            self.queue.append(
                record(key, event, present, **{k: v for k, v in values.items() if event != Event.DESTROY})
            )

    def create(self, key: int) -> None:
        if key not in self.entries:
            self.ids += 1
            # Slab memory is used again, so that ids are too.
            self.entries[key] = Entry(id=self.ids % 2)
            self.tell(key, Event.NEW, EVERYTHING & ~Present.MARK)

    def change(self, key: int, name: str) -> None:
        if key not in self.entries:
            return
        entry = self.entries[key]
        setattr(entry, name, getattr(entry, name) + 1)
        brought = {"status": Present(0), "mark": Present.MARK, "tcp_state": Present.TCP_STATE}[name]
        self.tell(key, Event.UPDATE, ALWAYS | brought)

    def destroy(self, key: int) -> None:
        if key in self.entries:
            self.tell(key, Event.DESTROY, ALWAYS)
            del self.entries[key]

    def read(self, count: int) -> tuple[np.ndarray[Any, Any], int]:
        got, self.queue = self.queue[:count], self.queue[count:]
        lost, self.lost = self.lost, 0
        return records(*got), lost


class Reader:
    """Keeps a table as the module's docstring says."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.table = FlowTable()
        self.to_dump = list(range(8))

    def read(self, count: int) -> None:
        events, lost = self.kernel.read(count)
        self.table.apply(events)
        if lost:
            self.table.mark_stale()

    def dump_part(self) -> None:
        if not self.to_dump:
            return
        key = self.to_dump.pop()
        if key in self.kernel.entries:
            self.table.take_dump(record(key, **vars(self.kernel.entries[key])))
        if not self.to_dump:
            self.table.finish_resync()

    def restart(self) -> None:
        if self.table.state is TableState.STALE and not self.to_dump:
            self.read(1000)
            self.table.begin_resync()
            self.to_dump = list(range(8))

    def settle(self) -> None:
        self.read(1000)
        while self.table.state is not TableState.LIVE or self.to_dump:
            self.restart()
            self.dump_part()
            self.read(1000)


KEYS = st.integers(0, 7)
STEPS = st.one_of(
    st.tuples(st.just("create"), KEYS),
    st.tuples(st.just("destroy"), KEYS),
    st.tuples(st.just("change"), KEYS, st.sampled_from(["status", "mark", "tcp_state"])),
    st.tuples(st.just("read"), st.integers(1, 6)),
    st.tuples(st.just("dump_part")),
    st.tuples(st.just("restart")),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(STEPS, max_size=80), st.integers(1, 20))
def test_any_order_of_events_dumps_and_losses_ends_equal_to_the_kernel(steps: list[Any], room: int) -> None:
    kernel = Kernel(room)
    reader = Reader(kernel)
    for name, *arguments in steps:
        getattr(kernel if name in ("create", "destroy", "change") else reader, name)(*arguments)
    reader.settle()
    kept = {
        int(r["key"]): Entry(int(r["id"]), int(r["status"]), int(r["mark"]), int(r["tcp_state"]))
        for r in reader.table.records()
    }
    assert kept == kernel.entries
    assert len(reader.table) == len(kernel.entries)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(KEYS, st.sampled_from([Event.NEW, Event.UPDATE, Event.DESTROY]), st.integers(0, 9))))
def test_a_batch_does_what_its_events_do_one_by_one(steps: list[Any]) -> None:
    events = [record(key, event, ALWAYS | Present.MARK, mark=mark) for key, event, mark in steps]
    together, one_by_one = live_table(record(0, mark=5)), live_table(record(0, mark=5))
    together.apply(records(*events))
    for event in events:
        one_by_one.apply(event)

    def marks(table: FlowTable) -> dict[int, int]:
        return {int(r["key"]): int(r["mark"]) for r in table.records()}

    assert marks(together) == marks(one_by_one)


def test_starts_syncing_and_is_live_after_the_first_dump() -> None:
    table = FlowTable()
    assert table.state is TableState.SYNCING
    result = table.resync(records(record(1), record(2)))
    assert table.state is TableState.LIVE
    assert (keys_of(result.added), keys_of(result.removed), keys_of(result.changed)) == ([1, 2], [], [])


def test_destroy_seen_during_the_dump_wins_over_the_dumped_entry() -> None:
    table = live_table(record(1))
    table.begin_resync()
    table.apply(record(1, Event.DESTROY, ALWAYS))
    result = table.resync(record(1))
    assert 1 not in table
    assert len(result.added) == len(result.removed) == 0


def test_entry_created_during_the_dump_stays_although_the_dump_has_it_not() -> None:
    table = live_table()
    table.begin_resync()
    table.apply(record(1, Event.NEW))
    result = table.resync(records())
    assert 1 in table
    assert len(result.removed) == 0


def test_what_an_event_did_not_bring_comes_from_the_dump() -> None:
    table = live_table(record(1, mark=1, tcp_state=1))
    table.begin_resync()
    table.apply(record(1, Event.UPDATE, ALWAYS | Present.TCP_STATE, tcp_state=3))
    table.resync(record(1, mark=2, tcp_state=2))
    kept = table.find(1)
    assert kept is not None
    assert (int(kept["tcp_state"]), int(kept["mark"])) == (3, 2)


@pytest.mark.parametrize("name", ["status", "mark", "tcp_state", "reply_dport", "id"])
def test_resync_reports_what_was_changed(name: str) -> None:
    table = live_table(record(1), record(2))
    table.begin_resync()
    result = table.resync(records(record(1, **{name: 9}), record(2)))
    assert keys_of(result.changed) == [1]


@pytest.mark.parametrize("name", ["timeout_s", "packets", "bytes"])
def test_timeouts_and_counters_are_no_change(name: str) -> None:
    table = live_table(record(1))
    table.begin_resync()
    result = table.resync(record(1, **{name: 9}))
    assert len(result.changed) == 0
    kept = table.find(1)
    assert kept is not None
    assert np.all(kept[name] == 9)


def test_loss_during_a_resync_leaves_the_table_stale() -> None:
    table = live_table()
    table.begin_resync()
    table.mark_stale()
    table.resync(record(1))
    assert table.state is TableState.STALE
    assert 1 in table


def test_an_entry_dumped_twice_counts_once() -> None:
    table = FlowTable()
    table.take_dump(records(record(1, mark=1), record(1, mark=2)))
    table.take_dump(record(1, mark=3))
    result = table.finish_resync()
    assert keys_of(result.added) == [1]
    assert len(result.changed) == 0
    assert len(table) == 1


def test_removed_entries_are_told_with_their_last_counters() -> None:
    table = live_table(record(1, mark=7))
    last = record(1, Event.DESTROY, ALWAYS | Present.COUNTERS, packets=[3, 4])
    removed = table.apply(last).removed
    assert keys_of(removed) == [1]
    assert removed["packets"].tolist() == [[3, 4]]
    assert removed["mark"].tolist() == [7]


def test_added_entries_are_told_as_they_are_after_the_batch() -> None:
    table = live_table(record(1))
    applied = table.apply(
        records(
            record(2, Event.NEW, status=8),
            record(2, Event.UPDATE, ALWAYS, status=14),
            record(1, Event.UPDATE, ALWAYS, status=10),
            record(1, Event.UPDATE, ALWAYS, status=14),
        )
    )
    assert (keys_of(applied.added), applied.added["status"].tolist()) == ([2], [14])
    assert dict(zip(table.records()["key"].tolist(), table.records()["status"].tolist(), strict=True)) == {1: 14, 2: 14}


def test_a_new_entry_over_a_kept_one_ends_that_one() -> None:
    table = live_table(record(1, mark=1))
    applied = table.apply(record(1, Event.NEW, mark=2))
    assert (applied.added["mark"].tolist(), applied.removed["mark"].tolist()) == ([2], [1])


def test_the_table_is_bounded_and_says_so() -> None:
    table = live_table(max_entries=3)
    table.apply(records(*(record(key, Event.NEW) for key in range(5))))
    assert len(table) == 3
    assert table.exceeded
    assert table.refused == 2


def test_a_resync_that_fits_ends_the_excess() -> None:
    table = live_table(max_entries=3)
    table.apply(records(*(record(key, Event.NEW) for key in range(5))))
    table.begin_resync()
    table.resync(records(record(0), record(1)))
    assert not table.exceeded
    assert keys_of(table.records()) == [0, 1]


def test_a_full_dump_beyond_the_bound_keeps_what_fits() -> None:
    table = FlowTable(max_entries=3)
    table.resync(records(*(record(key) for key in range(10))))
    assert len(table) == 3
    assert table.refused == 7


def test_rows_are_used_again() -> None:
    table = live_table()
    for round_ in range(50):
        keys = range(round_ * 1000, round_ * 1000 + 90)
        table.apply(records(*(record(key, Event.NEW) for key in keys)))
        table.apply(records(*(record(key, Event.DESTROY) for key in keys)))
    assert len(table) == 0
    assert len(table._store) <= 1024
