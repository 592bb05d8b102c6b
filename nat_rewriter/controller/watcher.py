"""Watching: the same findings as one look has, live from conntrack events."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from nat_rewriter.controller.drift_poll import DriftPoll
from nat_rewriter.controller.handed_on import without_handed_on
from nat_rewriter.controller.observation import (
    ALL_KINDS,
    PRESSURE,
    add_holders,
    confirmed,
    name_processes,
    read_host_settings,
    tunnel_mark,
)
from nat_rewriter.controller.recheck import Recheck
from nat_rewriter.detect import FindingTracker, Loss, Needs, Observation, SliceIndex, find_findings
from nat_rewriter.detect.tracker import Change
from nat_rewriter.detect.uses import Use
from nat_rewriter.errors import NetlinkError
from nat_rewriter.flowtable import Records, ResyncResult, TableState
from nat_rewriter.kernel.conntrack import dump_batches
from nat_rewriter.kernel.conntrack_events import EventStream
from nat_rewriter.kernel.flow_table import FlowTable
from nat_rewriter.kernel.sieve import Sieve
from nat_rewriter.kernel.sockets import list_sockets
from nat_rewriter.model.findings import Finding, Kind
from nat_rewriter.model.needs import needs_of
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.slices import Slice
from nat_rewriter.model.watching import SliceUse, WatchStatus
from nat_rewriter.usage import list_busiest

if TYPE_CHECKING:
    from nat_rewriter.history.recorder import Recorder

_Taken = TypeVar("_Taken")

LOOK_EVERY_S = 1.0
_RATE_OVER_S = 1.0
# A look may take this share of the time, so that a great table leaves time for its events.
_LOOK_SHARE = 0.2
# After a loss the queue is read empty first; when it never is, the table is dumped anyway.
_RESYNC_PATIENCE_S = 2.0
_LOOK_PATIENCE_S = 5.0
_DUMP_ATTEMPTS = 5
# Events that come close together are taken in together: one by one they would cost three times as much.
_GATHER_S = 0.005
_DESTINATIONS = 10
_AT_ONCE = frozenset({Kind.PORT_LEAKED, Kind.PORT_REMAPPED})


class Watcher:
    """Follows conntrack events in this network namespace and tells findings as they open and close.

    Entering it subscribes, then dumps, so that nothing falls between. ``step`` is to be called again and again; it
    raises what the kernel edges raise. Rewritten ports are told from the event itself, all other kinds by looking at
    the whole table every second.
    """

    def __init__(
        self,
        policy: Policy,
        kinds: Collection[Kind] = ALL_KINDS,
        *,
        pressure: float = PRESSURE,
        buffer_bytes: int = 32 << 20,
        count_use: bool = False,
        recorder: Recorder | None = None,
    ) -> None:
        self._kinds, self._pressure = frozenset(kinds), pressure
        self._buffer_bytes, self._count_use, self._recorder = buffer_bytes, count_use, recorder
        self._tracker = FindingTracker()
        self._take_policy(policy)
        self._fresh: list[Records] = []
        self._last_found: list[Finding] = []
        self._to_mend: list[Finding] = []
        self.looks = 0
        self._loss: Loss | None = None
        self._dropped_now = 0
        self._stale_since = self._next_look = self._looked_at = self._read_at = 0.0
        self._rate_since, self._events_then = time.monotonic(), 0
        self.status = WatchStatus(TableState.SYNCING.value)

    def __enter__(self) -> Watcher:
        self._stream = EventStream(buffer_bytes=self._buffer_bytes)
        try:
            self._take_table()
        except BaseException:
            self._stream.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._drift.close()
        self._stream.close()

    def follow(self, policy: Policy, recorder: Recorder | None = None) -> None:
        """Watch by another policy, and record elsewhere, from now on.

        No event is missed in between, and what is open and stays so is not told again.
        """
        self._drift.close()
        self._recorder = recorder
        self._take_policy(policy)
        self._take_table()
        self._fresh, self._to_mend = [], []
        self._next_look = 0.0

    def _take_policy(self, policy: Policy) -> None:
        self._policy = policy
        self._index, self._sieve = SliceIndex(policy.slices), Sieve(policy.slices)
        self._drift = DriftPoll(policy, wanted=bool(needs_of(self._kinds) & Needs.DRIFT))

    def _take_table(self) -> None:
        """Dump the table while events are taken in."""
        self._table = FlowTable(judge=self._sieve)
        self._recheck = Recheck(self._table, always=self._recorder is not None)
        self._take_whole_dump(self._table.load)

    def records(self) -> Records:
        """Return the entries of the flow table as they are known now."""
        return self._table.records()

    def counted_flows(self) -> int:
        """Return how many flows are counted by slice and destination: as many as there are entries."""
        return self._sieve.flows

    def take_to_mend(self) -> list[Finding]:
        """Return the findings that were seen since the last call: those of the last look, and those that came since.

        Unlike what ``step`` returns, a finding comes again with every look, with its victim as that look sees it.
        """
        taken, self._to_mend = self._to_mend, []
        return taken

    def step(self, timeout_s: float = 0.5) -> list[Change]:
        """Take in the events that are there, or wait for some; return the findings that opened or closed."""
        drained = self._gather(min(timeout_s, max(0.0, self._next_look - time.monotonic())))
        changes = self._judge_fresh()
        if self._recorder and self._recorder.wants_snapshot and self._table.state is TableState.LIVE:
            self._recorder.snapshot(self._table.records())
        if drained or self._recheck.under_way:
            self._compare()
        resynced = self._table.state is TableState.STALE and (drained or self._stale_for() > _RESYNC_PATIENCE_S)
        if resynced:
            self._resync()
            changes += self._judge_fresh()
        if self._may_look(resynced) and time.monotonic() >= self._next_look:
            changes += self._look()
        self._note_progress()
        return changes

    def _may_look(self, resynced: bool) -> bool:
        """Tell whether the table shows what is: while events are missing it is dumped again first.

        Where events are lost during each dump too, a table that was just dumped is better than none for ever.
        """
        overdue = time.monotonic() - self._looked_at > _LOOK_PATIENCE_S
        return self._table.state is TableState.LIVE or (resynced and overdue)

    def _gather(self, timeout_s: float) -> bool:
        """Read a batch of events as large as it gets in a moment."""
        time.sleep(max(0.0, self._read_at + _GATHER_S - time.monotonic()))
        drained = self._read(0 if self._recheck.under_way else timeout_s)
        self._read_at = time.monotonic()
        return drained

    def _read(self, timeout_s: float) -> bool:
        """Apply one batch of events; tell whether nothing is left in the queue."""
        batch = self._stream.read(timeout_s)
        applied = self._table.apply(batch.records)
        if self._recorder:
            missing = bool(batch.overruns) or self._table.state is not TableState.LIVE
            self._recorder.events(batch.records, updates=missing)
        if len(applied.seen):
            self._fresh.append(applied.seen)
        self.status = replace(self.status, events=self.status.events + len(batch.records))
        if batch.overruns:
            self._note_loss(batch.overruns)
        return batch.drained

    def _note_loss(self, events: int) -> None:
        if self._table.state is not TableState.STALE:
            self._stale_since = time.monotonic()
        self._table.mark_stale()
        self._dropped_now += events
        self.status = replace(self.status, state=TableState.STALE.value, dropped=self.status.dropped + events)

    def _stale_for(self) -> float:
        return time.monotonic() - self._stale_since

    def _judge_fresh(self) -> list[Change]:
        """Judge the entries that events brought: the first event of a rewritten local flow shows it all."""
        fresh, self._fresh = self._fresh, []
        kinds = self._kinds & _AT_ONCE
        if not fresh or not kinds:
            return []
        seen = self._observation(flows=np.concatenate(fresh))
        rewritten = seen.local[seen.rewritten]
        if not len(rewritten):
            return []
        met = add_holders(self._observation(flows=rewritten), self._sieve.zones())
        found = find_findings(replace(met, sockets=list_sockets()), kinds)
        new = name_processes([one for one in found if not self._tracker.has(one)])
        self._to_mend += new
        return self._tracker.add(new)

    def _look(self) -> list[Change]:
        """Judge the whole table, and everything beside it."""
        started = time.monotonic()
        needs = needs_of(self._kinds)
        sockets = list_sockets() if needs & Needs.SOCKETS else None
        changes = self._catch_up()
        whole = self._observation(
            flows=self._table.seen(), sifted=self._sieve, drift=self._drift.latest(), loss=self._loss
        )
        if sockets is not None:
            whole = add_holders(replace(whole, sockets=sockets), self._sieve.zones())
        if needs & Needs.HOST:
            whole = replace(whole, host=read_host_settings())
        found = without_handed_on(find_findings(whole, self._kinds), self._policy.controller.table)
        changes += self._settle(found)
        self._loss = None
        self._note_status(whole)
        self._looked_at = time.monotonic()
        self._next_look = started + max(LOOK_EVERY_S, (time.monotonic() - started) / _LOOK_SHARE)
        return changes

    def _settle(self, found: list[Finding]) -> list[Change]:
        """Take in what a look found; what may be an artefact of the order of looking has to be seen twice."""
        sure = self._named(confirmed(self._last_found, found))
        self._last_found = found
        self._to_mend = sure
        self.looks += 1
        return self._tracker.replace(sure)

    def _named(self, found: list[Finding]) -> list[Finding]:
        """Name the processes of new findings alone: reading /proc costs more than all the rest."""
        new = name_processes([one for one in found if not self._tracker.has(one)])
        return [one for one in found if self._tracker.has(one)] + new

    def _catch_up(self) -> list[Change]:
        """Apply the events of what the sockets listed just now have done."""
        self._drain()
        return self._judge_fresh()

    def _drain(self) -> None:
        """Read what is queued, and not for ever where more comes than can be read."""
        until = time.monotonic() + _RESYNC_PATIENCE_S
        while not self._read(0) and time.monotonic() < until:
            pass

    def _resync(self) -> None:
        """Dump the table while events go on; the difference is what was missed."""
        started = time.monotonic()
        self._drain()
        self._recheck.abandon()
        self._table.begin_resync()
        result = self._take_whole_dump(self._take_dump)
        self._loss = self._loss_of(result)
        if self._recorder:
            self._recorder.missed(result, self._table)
        self._dropped_now = 0
        self._stale_since = time.monotonic()
        self._next_look = 0.0
        self.status = replace(
            self.status, resyncs=self.status.resyncs + 1, resync_seconds=time.monotonic() - started
        )  # fmt: skip

    def _compare(self) -> None:
        """Learn what events do not tell; it is nothing that was lost."""
        result = self._recheck.advance()
        if result is not None and self._recorder:
            self._recorder.missed(result, self._table)

    def _loss_of(self, result: ResyncResult) -> Loss:
        before = self._loss or Loss(0)
        return Loss(
            before.events + self._dropped_now,
            before.added + len(result.added),
            before.removed + len(result.removed),
            before.changed + len(result.changed),
            number=self.status.resyncs,
        )

    def _take_whole_dump(self, take: Callable[[Iterator[Records]], _Taken]) -> _Taken:
        for _ in range(_DUMP_ATTEMPTS - 1):
            try:
                return take(self._dump_beside_events())
            except NetlinkError:  # the table was resized meanwhile: the dump may lack entries
                if self._recorder:
                    self._recorder.ask_snapshot()
                self._table.begin_resync()
        return take(self._dump_beside_events())

    def _dump_beside_events(self) -> Iterator[Records]:
        for part in dump_batches():
            yield part
            self._read(0)

    def _take_dump(self, parts: Iterator[Records]) -> ResyncResult:
        for part in parts:
            self._table.take_dump(part)
        return self._table.finish_resync()

    def _observation(self, **seen: Any) -> Observation:
        mark = tunnel_mark(self._policy)
        mode = self._policy.controller.coexist
        return Observation(self._index, coexist=mode, pressure=self._pressure, tunnel_mark=mark, **seen)

    def _note_progress(self) -> None:
        """Note what can be told without a look: there is none while events are being lost."""
        passed = time.monotonic() - self._rate_since
        if passed < _RATE_OVER_S:
            return
        rate = (self.status.events - self._events_then) / passed
        self._rate_since, self._events_then = time.monotonic(), self.status.events
        self.status = replace(self.status, entries=len(self._table), event_rate=rate)

    def _note_status(self, whole: Observation) -> None:
        self.status = replace(
            self.status,
            state=self._table.state.value,
            entries=len(self._table),
            slices=count_slices(whole) if self._count_use else (),
            destinations=tuple(list_busiest(whole, _DESTINATIONS)) if self._count_use else (),
            findings=tuple(self._tracker.open),
            opened=dict(self._tracker.opened),
            recorder=self._recorder.status if self._recorder else None,
        )


def count_slices(observation: Observation) -> tuple[SliceUse, ...]:
    """Return the use of every slice, in the order of the configuration."""
    busiest = {use.slice_number: use for use in observation.busiest}
    return tuple(
        _slice_use(each, flows, busiest.get(number))
        for number, (each, flows) in enumerate(zip(observation.slices, observation.slice_flows, strict=True))
    )


def _slice_use(each: Slice, flows: int, use: Use | None) -> SliceUse:
    if use is None:
        capacity = sum(len(ports) for ports in each.rewrite_ranges)
        return SliceUse(each.name, flows, "", 0, capacity, capacity)
    towards = f"{use.towards.protocol} {use.towards.destination}"
    return SliceUse(each.name, flows, towards, use.used, use.capacity, use.findable)
