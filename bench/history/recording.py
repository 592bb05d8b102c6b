"""How fast events are recorded beside being followed: made-up NEW and DESTROY events, in batches as they are read."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import numpy as np

from bench.history.flows import Traffic
from nat_rewriter.history.reader import Question, find
from nat_rewriter.history.recorder import QUEUED_FLOWS, Recorder
from nat_rewriter.kernel.flow_table import FlowTable
from nat_rewriter.model.flows import FLOW_FIELDS, Event, Present, Status
from nat_rewriter.model.slices import PortRange, Protocol, Slice

BATCH = 8192
RECORD_DTYPE = np.dtype(FLOW_FIELDS)
Row = tuple[str, str]
Events = list[np.ndarray]


def run(count: int, place: Path) -> Iterator[Row]:
    """Follow the events alone, then with a recorder: as fast as it takes them, and as fast as they are followed."""
    batches = _batches(count)
    events = sum(map(len, batches))
    alone_s, _ = _follow(batches, None)
    yield "followed, not recorded", f"{events / alone_s:,.0f} events/s"
    with Recorder(place / "paced", _slices()) as recorder:
        worked = os.times()
        paced_s, slowest_s = _follow(batches, recorder, paced=True)
        written_s = _wait(recorder) + paced_s
        cpu_s = sum(os.times()[:2]) - sum(worked[:2])
        yield (
            "recorded, none lost",
            f"{events / written_s:,.0f} events/s, {cpu_s / events * 1e6:.2f} us of CPU an event in all",
        )
        yield "longest call of the recorder", f"{slowest_s * 1e3:.1f} ms (8,192 events)"
        yield "lost", f"{recorder.status.lost}"
    size = sum(path.stat().st_size for path in (place / "paced").iterdir())
    yield "size once sealed", f"{size / (events / 2):.1f} bytes a flow"
    with Recorder(place / "flood", _slices()) as recorder:
        flood_s, slowest_s = _follow(batches, recorder)
        _wait(recorder)
        lost = recorder.status.lost
    yield "flooded", f"followed at {events / flood_s:,.0f} events/s; {lost / events:.0%} lost and said so"
    yield "longest call then", f"{slowest_s * 1e3:.1f} ms"
    yield "answers", f"{_count_found(place / 'paced'):,} flows of {events // 2:,} found again"


def _follow(batches: Events, recorder: Recorder | None, *, paced: bool = False) -> tuple[float, float]:
    table, slowest_s, started = FlowTable(), 0.0, time.perf_counter()
    for batch in batches:
        table.apply(batch)
        if recorder is None:
            continue
        while paced and recorder.status.queued > QUEUED_FLOWS // 2:
            time.sleep(0.005)
        before = time.perf_counter()
        recorder.events(batch)
        slowest_s = max(slowest_s, time.perf_counter() - before)
    return time.perf_counter() - started, slowest_s


def _wait(recorder: Recorder) -> float:
    """Wait until all is on disk; return how long."""
    started = time.perf_counter()
    written = -1
    while recorder.status.queued or recorder.status.written != written:
        written = recorder.status.written
        time.sleep(1.0)
    return max(0.0, time.perf_counter() - started - 1.0)


def _slices() -> list[Slice]:
    first = Traffic().first_address
    ports, protocols = (PortRange(1024, 65535),), (Protocol.TCP, Protocol.UDP)
    return [
        Slice(f"slice-{number}", ip_address(first + number), ports, protocols) for number in range(Traffic().addresses)
    ]


def _batches(count: int) -> Events:
    """Return the events of flows, each of which ends a batch after it began."""
    found: Events = []
    before = np.empty(0, RECORD_DTYPE)
    for flows in Traffic().batches(count, BATCH // 2):
        opened, closed = _events(flows, Event.NEW), _events(flows, Event.DESTROY)
        found.append(np.concatenate((opened, before)))
        before = closed
    return [*found, before]


def _events(flows: np.ndarray, event: Event) -> np.ndarray:
    made = np.zeros(len(flows), RECORD_DTYPE)
    for end, ours in (("orig_src", "client"), ("orig_dst", "remote"), ("reply_src", "remote"), ("reply_dst", "wire")):
        made[end] = flows[ours]
        port = end.replace("src", "sport").replace("dst", "dport")
        made[port] = flows[f"{ours}_port"]
    for field in ("family", "protocol", "id"):
        made[field] = flows[field]
    made["key"], made["event"] = flows["flow"], event
    made["status"] = Status.CONFIRMED | Status.SRC_NAT | Status.SRC_NAT_DONE | Status.DST_NAT_DONE
    made["present"] = Present.STATUS | Present.ID | Present.TIMEOUT
    if event is Event.DESTROY:
        made["present"] |= int(Present.COUNTERS)
        made["packets"], made["bytes"] = flows["packets"], flows["bytes"]
    return made


def _count_found(directory: Path) -> int:
    questions = [Question("wire", each.address) for each in _slices()]
    return sum(len(found.records) for question in questions for found in find(directory, question))
