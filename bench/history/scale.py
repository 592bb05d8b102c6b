"""A large history: built once from made-up flows, then asked, with its files out of the page cache and in it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.history.flows import Traffic
from nat_rewriter.history.directory import WriterLock, list_parts, live_path, sealed_path
from nat_rewriter.history.parts import Wanted, read_sealed, write_sealed
from nat_rewriter.history.reader import END_OF_TIME, Question, find
from nat_rewriter.history.records import Records, joined

PART_RECORDS = 1 << 18
ASKED = 15
Row = tuple[str, str]


class Took(NamedTuple):
    """How long something took, and how long the processor worked for it."""

    seconds: float
    cpu: float


def run(directory: Path, count: int, traffic: Traffic) -> Iterator[Row]:
    """Build a history of that many flows, and ask it."""
    yield from build(directory, count, traffic)
    yield from ask(directory)


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


def ask(directory: Path) -> Iterator[Row]:
    """Measure answers. Each question is asked of flows from the whole length of the history."""
    wanted = _some_flows(directory)
    for name, question in _QUESTIONS.items():
        asked = [question(record) for record in wanted]
        cold, found = _times(directory, asked, cold=True)
        warm, _ = _times(directory, asked, cold=False)
        yield name, f"{np.median(found):,.0f} flows, {_shown(warm)}; with no file in memory {_shown(cold)}"
    yield from _whole_command(directory, wanted[0])


def _some_flows(directory: Path) -> Records:
    """Return flows from the whole length of the history."""
    parts = list_parts(directory)
    everything = Wanted("wire", b"", b"\xff" * 20, 0, END_OF_TIME)
    chosen = []
    for part in parts[:: max(1, len(parts) // ASKED)][:ASKED]:
        records, _ = read_sealed(part.path, everything)
        chosen.append(records[len(records) // 2 : len(records) // 2 + 1])
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


def _times(directory: Path, questions: list[Question], *, cold: bool) -> tuple[list[Took], list[int]]:
    took, found = [], []
    for question in questions:
        if cold:
            _forget(directory)
        with _timed(took):
            found.append(sum(len(answer.records) for answer in find(directory, question)))
    return took, found


@contextmanager
def _timed(took: list[Took]) -> Iterator[None]:
    started, worked = time.perf_counter(), os.times()
    yield
    took.append(Took(time.perf_counter() - started, sum(os.times()[:4]) - sum(worked[:4])))


def _forget(directory: Path) -> None:
    """Take the files out of the page cache."""
    for path in directory.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _shown(took: list[Took]) -> str:
    """Return medians: on a busy machine the time that was worked says more than the time that went by."""
    seconds, cpu = (statistics.median(column) for column in zip(*took, strict=True))
    return (
        f"{seconds * 1e3:.0f} ms ({cpu * 1e3:.0f} ms of CPU, at most {max(one.seconds for one in took) * 1e3:.0f} ms)"
    )


def _whole_command(directory: Path, record: np.void) -> Iterator[Row]:
    address, port = ip_address(int(record["wire"][1])), int(record["wire_port"])
    moment = datetime.fromtimestamp(int(record["start_ns"]) // 1_000_000_000, UTC).isoformat()
    for name, more in (("natctl history address:port", []), ("the same with --at", ["--at", moment])):
        command = [sys.executable, "-m", "nat_rewriter", "history", f"{address}:{port}", "--record", str(directory)]
        took: list[Took] = []
        for _ in range(5):
            with _timed(took):
                subprocess.run([*command, *more], check=True, stdout=subprocess.DEVNULL)
        yield name, _shown(took)
