"""Storms of events, with the reader stopped in the middle: losses are told, and afterwards the table is the kernel's.

``NATCTL_LONG=1``: three million events and two seconds each, ten times.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from own_network import own_network

from nat_rewriter.config import read_policy
from nat_rewriter.controller import recheck
from nat_rewriter.controller.watcher import Watcher
from nat_rewriter.kernel.conntrack import delete_flow, dump, insert_flow
from nat_rewriter.model.tuples import FlowTuple

HERE = Path(__file__).parent
BENCH = HERE.parents[1] / "bench" / "observe"
LONG = bool(os.environ.get("NATCTL_LONG"))
EVENTS, KEPT, STOPPED_S, ROUNDS = (3_000_000, 100_000, 2.0, 10) if LONG else (300_000, 20_000, 0.4, 2)
BUFFER_BYTES = 32 << 20 if LONG else 4 << 20

CONFIG = """
version = 1
[[slice]]
name = "storm"
address = "198.51.100.10"
ports = ["2000-60000"]
protocols = ["tcp"]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "natctl.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def flood(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("native") / "flood"
    subprocess.run(["cc", "-O2", "-std=gnu11", "-o", str(program), str(BENCH / "native" / "flood.c")], check=True)
    return program


@pytest.fixture
def reader(config: Path) -> Iterator[Asking]:
    """A watcher in another process, and how to ask it."""
    with own_network():
        command = [sys.executable, str(BENCH / "storm_reader.py"), str(config), str(BUFFER_BYTES)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            yield Asking(process)
        finally:
            process.kill()
            process.communicate()


class Asking:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert self._line() == "listening\n"

    def __call__(self) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write("compare\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._line())
        return answer

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_after_a_storm_the_table_is_the_kernels(flood: Path, reader: Asking, round_: int) -> None:
    storm = subprocess.Popen([str(flood), "storm", str(EVENTS), str(KEPT)], stdout=subprocess.PIPE, text=True)
    time.sleep(0.2)
    reader.process.send_signal(signal.SIGSTOP)
    time.sleep(STOPPED_S)
    reader.process.send_signal(signal.SIGCONT)
    made = json.loads(storm.communicate()[0])
    assert (made["refused"], made["made"] > 0.9 * EVENTS) == (0, True)
    found = reader()
    assert found["equal"], found
    assert found["entries"] == found["counted"] == KEPT
    assert found["dropped"] > 0
    assert found["told"] >= 1
    assert found["resyncs"] >= 1


def flow_to(port: int) -> FlowTuple:
    return FlowTuple("tcp", ip_address("192.0.2.1"), port, ip_address("203.0.113.1"), 80)


def test_entries_whose_end_is_not_told_do_not_stay(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default entries that came while nobody listened have no events."""
    monkeypatch.setattr(recheck, "_EVERY_S", 0.2)
    with own_network():
        before = [flow_to(port) for port in range(1000, 1020)]
        for one in before:
            insert_flow(one, 300)
        with Watcher(read_policy(config)) as watcher:
            watcher.step(0.1)
            for one in before[:10]:
                delete_flow(one)
            insert_flow(flow_to(2000), 300)
            until = time.monotonic() + 20
            while len(watcher.records()) != 11 and time.monotonic() < until:
                watcher.step(0.1)
            assert sorted(watcher.records()["key"].tolist()) == sorted(dump()["key"].tolist())
            assert watcher.counted_flows() == 11
            assert (watcher.status.dropped, watcher.status.resyncs) == (0, 0)
