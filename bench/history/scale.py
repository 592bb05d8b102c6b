"""A large history: built once from made-up flows, then asked, with its files out of the page cache and in it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import numpy as np

from bench.history.flows import Traffic
from nat_rewriter.history.directory import WriterLock, list_parts, live_path, sealed_path
from nat_rewriter.history.parts import write_sealed
from nat_rewriter.history.reader import Question, find
from nat_rewriter.history.records import Records, joined

PART_RECORDS = 1 << 18
ASKED = 15
Row = tuple[str, str]


def build(directory: Path, count: int, traffic: Traffic) -> Iterator[Row]:
    """Write sealed parts of made-up flows."""
    lock = WriterLock(directory)
    slices = [f"slice-{number}" for number in range(traffic.addresses)]
    writing_s = 0.0
    for number, batch in enumerate(traffic.batches(count, PART_RECORDS), start=1):
        path = sealed_path(live_path(directory, number), int(batch["start_ns"].min()), int(batch["end_ns"].max()))
        started = time.perf_counter()
        write_sealed(path, batch, "made-up", slices)
        writing_s += time.perf_counter() - started
    lock.close()
    size = sum(part.path.stat().st_size for part in list_parts(directory))
    yield "flows", f"{count:,}, in {len(list_parts(directory))} parts"
    yield "size", f"{size / 1e9:.2f} GB, {size / count:.1f} bytes a flow"
    yield "sorted and written", f"{count / writing_s:,.0f} flows/s"


def ask(directory: Path, traffic: Traffic, count: int) -> Iterator[Row]:
    """Measure answers. Each question is asked of flows from the whole length of the history."""
    wanted = _some_flows(traffic, count)
    for name, question in _QUESTIONS.items():
        asked = [question(record) for record in wanted]
        cold, found = _times(directory, asked, cold=True)
        warm, _ = _times(directory, asked, cold=False)
        yield name, f"{_shown(warm)}; files not in memory {_shown(cold)}; {np.median(found):,.0f} flows"
    yield from _whole_command(directory, wanted[0])


def _some_flows(traffic: Traffic, count: int) -> Records:
    """Return flows that the history has: the client and server ports of others are drawn again."""
    chosen = []
    batches = traffic.batches(count, PART_RECORDS)
    step = max(1, count // PART_RECORDS // ASKED)
    for number, batch in enumerate(batches):
        if number % step == 0 and len(chosen) < ASKED:
            chosen.append(batch[len(batch) // 2 : len(batch) // 2 + 1])
    return joined(chosen)


def _tuple(record: np.void) -> Question:
    return Question("wire", ip_address(int(record["wire"][1])), int(record["wire_port"]))


def _at(question: Question, record: np.void) -> Question:
    moment = int(record["start_ns"])
    return replace(question, since_ns=moment, until_ns=moment)


def _client(record: np.void) -> Question:
    return Question("client", ip_address(int(record["client"][1])))


_QUESTIONS: dict[str, Callable[[np.void], Question]] = {
    "address:port, all time": _tuple,
    "address:port --at": lambda record: _at(_tuple(record), record),
    "address --at": lambda record: _at(Question("wire", ip_address(int(record["wire"][1]))), record),
    "--client, all time": _client,
    "--client --at": lambda record: _at(_client(record), record),
}


def _times(directory: Path, questions: list[Question], *, cold: bool) -> tuple[list[float], list[int]]:
    took, found = [], []
    for question in questions:
        if cold:
            _forget(directory)
        started = time.perf_counter()
        found.append(sum(len(answer.records) for answer in find(directory, question)))
        took.append(time.perf_counter() - started)
    return took, found


def _forget(directory: Path) -> None:
    """Take the files out of the page cache."""
    for path in directory.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _shown(times: list[float]) -> str:
    return f"{statistics.median(times) * 1e3:.0f} ms (at most {max(times) * 1e3:.0f})"


def _whole_command(directory: Path, record: np.void) -> Iterator[Row]:
    address, port = ip_address(int(record["wire"][1])), int(record["wire_port"])
    moment = datetime.fromtimestamp(int(record["start_ns"]) // 1_000_000_000, UTC).isoformat()
    for name, more in (("natctl history address:port", []), ("the same with --at", ["--at", moment])):
        command = [sys.executable, "-m", "nat_rewriter", "history", f"{address}:{port}", "--record", str(directory)]
        times = []
        for _ in range(5):
            started = time.perf_counter()
            subprocess.run([*command, *more], check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - started)
        yield name, _shown(times)
