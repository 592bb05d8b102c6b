"""What running a command takes: time, processor time and memory."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


def natctl(*arguments: str) -> list[str]:
    """Return how natctl is run: as its users do, where it is installed beside this Python."""
    script = Path(sys.executable).with_name("natctl")
    return [*([str(script)] if script.exists() else [sys.executable, "-m", "nat_rewriter"]), *arguments]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one run, with all its processes."""

    seconds: float
    cpu_s: float
    memory_mib: float


def run(command: Sequence[str], accepted: Iterable[int] = (0, 3)) -> Cost:
    """Run a command with its output thrown away; it has to end with an accepted exit code."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in accepted:
        raise RuntimeError(f"{command[0]}: exit code {process.returncode}: {said.decode().strip()}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def compare(commands: Mapping[str, Sequence[str]], times: int) -> dict[str, Cost]:
    """Run each command so many times, in turns, so that what else happens meets all; return the medians."""
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(times):
        for name, command in commands.items():
            costs[name].append(run(command))
    return {name: median(some) for name, some in costs.items()}


def median(costs: Sequence[Cost]) -> Cost:
    """Return the median of each figure."""
    return Cost(
        statistics.median(cost.seconds for cost in costs),
        statistics.median(cost.cpu_s for cost in costs),
        max(cost.memory_mib for cost in costs),
    )
