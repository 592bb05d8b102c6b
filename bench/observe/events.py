"""How many events a second a listener keeps up with, and what each costs."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_NETFILTER = "12"
_TICKS = os.sysconf("SC_CLK_TCK")
_STEP = 1.2
_CATCH_UP_S = 0.5


@dataclass(frozen=True, slots=True)
class Kept:
    """The highest rate that was kept without loss. ``limited``: the generator could do no more."""

    rate: float
    cpu_us: float
    limited: bool


@dataclass(frozen=True, slots=True)
class _Trial:
    rate: float
    cpu_us: float
    kept: bool
    reached: bool


def highest_rate(flood: str, listener: Sequence[str], first_rate: float, seconds: float, settle_s: float) -> Kept:
    """Raise the rate by a fifth until events are lost; tell of the highest at which none was."""
    best, rate = Kept(0, 0, limited=False), first_rate
    while True:
        trial = _try(flood, listener, rate, seconds, settle_s)
        if not trial.kept and not (trial := _try(flood, listener, rate, seconds, settle_s)).kept:
            return best
        best = Kept(max(best.rate, trial.rate), trial.cpu_us, limited=not trial.reached)
        if not trial.reached:
            return best
        rate *= _STEP


def _try(flood: str, listener: Sequence[str], rate: float, seconds: float, settle_s: float) -> _Trial:
    process = subprocess.Popen(listener, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(settle_s)
        _, dropped = _queue()
        before = _cpu_s(process.pid)
        command = [flood, "churn", str(rate), str(seconds)]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        time.sleep(_CATCH_UP_S)
        waiting, lost = _queue()
        cpu_us = (_cpu_s(process.pid) - before) / told["made"] * 1e6
    finally:
        process.terminate()
        process.wait()
    achieved = told["made"] / told["seconds"]
    return _Trial(achieved, cpu_us, kept=lost == dropped and waiting == 0, reached=achieved > 0.9 * rate)


def _queue() -> tuple[int, int]:
    """Return the bytes that wait for the one listener of this namespace, and how many events it has lost."""
    for line in Path("/proc/thread-self/net/netlink").read_text(encoding="ascii").splitlines()[1:]:
        _, protocol, _, groups, waiting, _, _, _, drops, *_ = line.split()
        if protocol == _NETFILTER and int(groups, 16):
            return int(waiting), int(drops)
    raise RuntimeError("the listener does not listen")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
