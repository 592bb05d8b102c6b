"""A watcher in a process of its own, that can be stopped and asked: run by test_storm.py and by bench/observe.

It prints a line once it listens. For each line on standard input it catches up with the kernel, compares its table
with a fresh dump, entry by entry, and prints an object.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from nat_rewriter.config import read_policy
from nat_rewriter.controller.watcher import Watcher
from nat_rewriter.kernel.conntrack import dump
from nat_rewriter.model.findings import Kind

FIELDS = ["key", "id", "status", "tcp_state", "mark", "reply_dst", "reply_dport"]
PATIENCE_S = 120


def main(config: str, buffer_bytes: str) -> None:
    with Watcher(
        read_policy(Path(config)), {Kind.EVENTS_LOST, Kind.SLICE_PRESSURE}, buffer_bytes=int(buffer_bytes)
    ) as watcher:
        print("listening", flush=True)
        told = 0
        while True:
            told += opened(watcher)
            if select.select([0], [], [], 0)[0]:
                if not os.read(0, 4096):
                    return
                told += settle(watcher)
                print(json.dumps(compared(watcher) | {"told": told}), flush=True)


def opened(watcher: Watcher) -> int:
    """Let the watcher work; return how many losses it told."""
    return sum(is_open for finding, is_open in watcher.step(0.05) if finding.kind is Kind.EVENTS_LOST)


def settle(watcher: Watcher) -> int:
    """Let the watcher work until its table is the kernel's and all is told."""
    told, looks, until = 0, watcher.looks, time.monotonic() + PATIENCE_S
    while time.monotonic() < until and (watcher.looks < looks + 2 or watcher.status.state != "live"):
        told += opened(watcher)
    return told


def compared(watcher: Watcher) -> dict[str, Any]:
    ours, theirs = (np.sort(table, order="key") for table in (watcher.records(), dump()))
    return {
        "equal": all(np.array_equal(ours[name], theirs[name]) for name in FIELDS),
        "entries": len(ours),
        "counted": watcher.counted_flows(),
        "dropped": watcher.status.dropped,
        "resyncs": watcher.status.resyncs,
        "resync_seconds": watcher.status.resync_seconds,
        "memory_kib": peak_memory(),
    }


def peak_memory() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


if __name__ == "__main__":
    main(*sys.argv[1:])
