"""The recorder: takes what a watcher learns, and writes it in a thread of its own."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from nat_rewriter.detect.ownership import SliceIndex
from nat_rewriter.errors import StateError
from nat_rewriter.flowtable import ResyncResult
from nat_rewriter.history.directory import WriterLock
from nat_rewriter.history.journaling import Journaling, Retention
from nat_rewriter.history.merging import Batch
from nat_rewriter.history.records import Column, Records, Sighting, Trait, joined
from nat_rewriter.history.sightings import sightings_of
from nat_rewriter.model.flows import Event
from nat_rewriter.model.slices import Slice
from nat_rewriter.model.watching import RecorderStatus

FLUSH_EVERY_S = 0.5
QUEUED_FLOWS = 400_000  # some 64 MiB
_ENOUGH_FLOWS = 16_384  # to begin with
_GATHER_S = 0.05
_PAGE_SIGHTINGS = 8192  # a page of that many is put together in the processor's cache
_NAMING_SHARE = 0.2  # of the writer's time, at most, but for one a flush
_KINDS = np.array([Sighting.SEEN, Sighting.OPENED, Sighting.SEEN, Sighting.CLOSED], np.uint8)  # by Event

NameProcesses = Callable[[Records], None]
Tell = Callable[[str], None]


class _Item(NamedTuple):
    flows: Column
    time_ns: int
    sighting: Sighting | None  # None: by the event of each
    complete: bool = False


class Recorder:
    """Keeps who had which tuple when, in the directory ``path``; there may be one of it at a time.

    ``events``, ``missed`` and ``snapshot`` take records of FLOW_FIELDS and never wait: what the queue has no room for
    is lost, counted and told. After a loss, and at the start, ``wants_snapshot`` asks for the whole table, so that no
    record stays open for ever. ``tell`` gets a sentence when writing fails and when it works again, from
    another thread. Raises StateError, LockHeld.
    """

    def __init__(
        self, path: Path, slices: Sequence[Slice], retention: Retention | None = None, *,
        name_processes: NameProcesses | None = None, tell: Tell = lambda sentence: None,
    ) -> None:  # fmt: skip
        self._index, self._name, self._tell = SliceIndex(slices), name_processes, tell
        self._lock = WriterLock(path)
        try:
            names = [each.name for each in slices]
            self._journaling = Journaling(path, names, retention or Retention(), secrets.token_hex(8), tell)
        except BaseException:
            self._lock.close()
            raise
        self._incomplete = True
        self._queue: deque[_Item] = deque()
        self._queued = self._written = self._lost = 0
        self._told_lost = 0
        self._problem = ""
        self._ready, self._stopping = threading.Condition(), False
        self._pending: list[Batch] = []
        self._unnamed: list[Records] = []
        self._next_naming = 0.0
        self._thread = threading.Thread(target=self._run, name="natctl-history", daemon=True)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._ready:
            self._stopping = True
            self._ready.notify()
        self._thread.join()
        self._journaling.close()
        self._lock.close()

    @property
    def status(self) -> RecorderStatus:
        """What was done so far."""
        return RecorderStatus(self._written, self._lost, self._queued, self._problem)

    @property
    def wants_snapshot(self) -> bool:
        """Whether ``snapshot`` should be called: something was lost, or nothing was told yet, and there is room."""
        return self._incomplete and not self._problem and self._queued < QUEUED_FLOWS // 2

    def events(self, records: Column, *, updates: bool = False) -> None:
        """Take in events; with ``updates`` also those of a change, from which an entry may be known first."""
        wanted = records if updates else records[records["event"] != Event.UPDATE]
        self._put(_Item(wanted, time.time_ns(), None))

    def missed(self, result: ResyncResult, table: Container[int]) -> None:
        """Take in what a resync of the flow table has shown that no event had told."""
        for records in (result.added, result.changed):
            # The dump may have an entry that an event has ended since.
            still = [key in table for key in records["key"].tolist()]
            self._put(_Item(records[np.array(still, bool)], time.time_ns(), Sighting.SEEN))
        self._put(_Item(result.removed, time.time_ns(), Sighting.GONE))

    def ask_snapshot(self) -> None:
        """Note that something was not told."""
        self._incomplete = True

    def snapshot(self, records: Column) -> None:
        """Take in all entries that there are."""
        self._incomplete = False
        self._put(_Item(records, time.time_ns(), Sighting.SEEN, complete=True))

    def _put(self, item: _Item) -> None:
        if not len(item.flows) and not item.complete:
            return
        with self._ready:
            if self._queued + len(item.flows) > QUEUED_FLOWS and not item.complete:
                self._lost += len(item.flows)
                self._incomplete = True
                return
            first = not self._queue
            self._queue.append(item)
            self._queued += len(item.flows)
            if first or self._queued >= _ENOUGH_FLOWS:
                self._ready.notify()

    # the writer's thread

    def _run(self) -> None:
        due = time.monotonic() + FLUSH_EVERY_S
        while True:
            items, stopping = self._take(due)
            for together in _groups(items):
                self._keep(together)
            self._name_new(at_once=False)
            if stopping or time.monotonic() >= due:
                due = time.monotonic() + FLUSH_EVERY_S
                self._flush()
            if stopping:
                return

    def _take(self, due: float) -> tuple[list[_Item], bool]:
        """Wait for something, and then a little more: many small batches cost more than one large one."""
        with self._ready:
            self._ready.wait_for(lambda: self._queue or self._stopping, max(0.0, due - time.monotonic()))
            if self._queue:
                self._ready.wait_for(lambda: self._queued >= _ENOUGH_FLOWS or self._stopping, _GATHER_S)
            items = list(self._queue)
            self._queue.clear()
            self._queued = 0
            return items, self._stopping

    def _keep(self, items: list[_Item]) -> None:
        flows = _joined_flows([item.flows for item in items])
        counts = [len(item.flows) for item in items]
        times = np.repeat(np.array([item.time_ns for item in items], np.uint64), counts)
        found = sightings_of(flows, self._index, np.concatenate([_sightings(item) for item in items]), times)
        if len(found) or items[-1].complete:
            self._pending.append(Batch(found, items[-1].time_ns, items[-1].complete))
        if self._name and (found["traits"] & Trait.LOCAL != 0).any():
            self._unnamed.append(found)

    def _name_new(self, *, at_once: bool) -> None:
        """Write into local flows which process they are of, while it may still be there."""
        started = time.monotonic()
        if not self._name or not self._unnamed or (started < self._next_naming and not at_once):
            return
        for records in self._unnamed:
            self._name(records)
        self._unnamed.clear()
        self._next_naming = time.monotonic() + (time.monotonic() - started) / _NAMING_SHARE

    def _flush(self) -> None:
        self._name_new(at_once=True)
        if self._pending:
            try:
                self._journaling.append(list(_gathered(self._pending)))
            except StateError as error:
                self._keep_for_later(error)
                return
            self._written += sum(len(batch.sightings) for batch in self._pending)
            self._pending.clear()
            if self._problem:
                self._note("")
        self._journaling.turn(time.time_ns())
        self._tell_losses()

    def _keep_for_later(self, error: StateError) -> None:
        """Try again at the next flush; what is too much to keep until then is lost."""
        self._note(str(error))
        while sum(len(batch.sightings) for batch in self._pending) > QUEUED_FLOWS:
            self._lost += len(self._pending.pop(0).sightings)
            self._incomplete = True

    def _note(self, problem: str) -> None:
        """Tell of a problem once, and once that it is over."""
        if problem and problem != self._problem:
            self._tell(f"history: {problem}; tried again, up to {QUEUED_FLOWS} sightings are kept in memory")
        elif self._problem and not problem:
            self._tell("history: written again")
        self._problem = problem

    def _tell_losses(self) -> None:
        if self._lost > self._told_lost:
            self._tell(f"history: {self._lost - self._told_lost} sightings were lost, {self._lost} in all")
            self._told_lost = self._lost


def _groups(items: Sequence[_Item]) -> Iterator[list[_Item]]:
    """Yield items together, but each complete one alone."""
    group: list[_Item] = []
    for item in items:
        if item.complete and group:
            yield group
            group = []
        group.append(item)
        if item.complete:
            yield group
            group = []
    if group:
        yield group


def _sightings(item: _Item) -> Column:
    if item.sighting is None:
        by_event: Column = _KINDS[item.flows["event"]]
        return by_event
    return np.full(len(item.flows), item.sighting, np.uint8)


def _joined_flows(parts: list[Column]) -> Column:
    flows = parts[0].dtype
    opaque = np.dtype((np.void, flows.itemsize))
    joined_flows: Column = np.concatenate([part.view(opaque) for part in parts]).view(flows)
    return joined_flows


def _gathered(batches: Sequence[Batch]) -> Iterator[Batch]:
    """Yield small neighbours as one; complete ones stay by themselves."""
    group: list[Batch] = []
    for batch in batches:
        if group and (batch.complete or sum(len(each.sightings) for each in group) >= _PAGE_SIGHTINGS):
            yield _as_one(group)
            group = []
        group.append(batch)
        if batch.complete:
            yield batch
            group = []
    if group:
        yield _as_one(group)


def _as_one(group: Sequence[Batch]) -> Batch:
    if len(group) == 1:
        return group[0]
    return Batch(joined([batch.sightings for batch in group]), group[-1].time_ns)
