"""An apply that is killed leaves the old table or the new one, and nothing in the way of the next; many go in turn.

``NATCTL_LONG=1`` kills at 500 moments and lets 200 apply at once.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from operating import NATCTL, generations, lasting, outcomes

from nat_rewriter.cli.main import run
from nat_rewriter.kernel.lock import table_lock
from netns_lab import Lab

LONG = bool(os.environ.get("NATCTL_LONG"))
MOMENTS = 500 if LONG else 60
AT_ONCE = 200 if LONG else 40
SLICES = 300  # so that the transaction takes its time


def many_slices(directory: Path, name: str, first_port: int, guard: str, narrow: int | None = None) -> Path:
    """Write a configuration with many slices, a client for each; ``narrow`` is one that is smaller than the others."""
    lines = ["version = 1", "[controller]", f'guard = "{guard}"']
    for number in range(SLICES):
        ports = first_port + 10 * number
        last = ports + (5 if number == narrow else 9)
        lines += ["[[slice]]", f'name = "s{number}"', 'address = "198.51.100.10"', f'ports = ["{ports}-{last}"]']
    for number in range(SLICES):
        lines += ["[[snat]]", f'name = "c{number}"', 'iifname = "fish0"']
        lines += [f'source = ["10.1.{number // 250}.{number % 250 + 1}"]', f'slices = ["s{number}"]']
    path = directory / f"{name}.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def digest(lab: Lab) -> str:
    """Return a short name for what the kernel has."""
    return hashlib.sha256(" ".join(lasting(lab)).encode()).hexdigest()


# What is between two configurations: an edit of a slice, elements of all slices, the rules.
CHANGES: dict[str, list[tuple[int, str, int | None]]] = {
    "edit": [(9000, "drop", None), (9000, "drop", 150)],
    "update": [(9000, "drop", None), (9005, "drop", None)],
    "rebuild": [(9000, "drop", None), (9005, "count", None)],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_killed_apply_leaves_the_old_table_or_the_new_one(
    change: list[tuple[int, str, int | None]], lab: Lab, state: Path, tmp_path: Path
) -> None:
    paths = [many_slices(tmp_path, str(number), *each) for number, each in enumerate(change)]
    tables, took = [], 0.0
    for path in paths:
        began = time.monotonic()
        assert lab.egress.popen([*NATCTL, "apply", "--config", path]).wait() == 0
        took = time.monotonic() - began
        tables.append(digest(lab))
    chance = random.Random(20261121)
    found = []
    for moment in range(MOMENTS // 2):
        wanted = moment % 2
        process = lab.egress.popen([*NATCTL, "apply", "--config", paths[wanted]])
        time.sleep(chance.uniform(0, took * 1.1))
        process.kill()
        process.wait()
        with lab.egress.enter():
            with table_lock("natctl", 10):
                pass  # the kernel has ended what it was at
            kept = digest(lab)
            assert kept in tables
            found.append(tables.index(kept) == wanted)
            assert run(["apply", "-q", "--config", str(paths[wanted])]) == 0
        assert digest(lab) == tables[wanted]
    assert set(found) == {True, False}, "every process was killed before, or every one after its transaction"
    known = outcomes(lab)
    assert known[-1][2] == "applied"
    assert {outcome for _, _, outcome in known} <= {"applied", "unfinished"}


def in_transaction(process: subprocess.Popen[str]) -> int:
    """Return the process of natctl that has libnftables and the lock, once it is there."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if b"--end-with" in command and ignores_interrupts(int(child)):
                return int(child)
        time.sleep(0.005)
    raise TimeoutError("no process with libnftables")


def ignores_interrupts(pid: int) -> bool:
    """Tell whether a process has come so far that it leaves Ctrl-C to its parent."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigIgn"], 16) >> (signal.SIGINT - 1) & 1)


def test_the_lock_outlasts_natctl_until_its_last_transaction_has_ended(lab: Lab) -> None:
    """Else the next one could look at the table before, and the transaction come after."""
    path = lab.config()
    process = lab.egress.popen([*NATCTL, "apply", "--config", path])
    worker = in_transaction(process)
    for pid in (process.pid, worker):
        os.kill(pid, signal.SIGSTOP)
    refused = lab.natctl("apply", "--config", path, expect=1)
    assert refused.stderr == f"natctl: lock table: held by process {process.pid}: 'natctl'\n"
    process.kill()
    process.wait()
    # The kernel ends the worker after its parent, as soon as it lets it go; the next apply waits for just that.
    assert "created" in lab.natctl("apply", "--config", path, expect=0).stdout


HOLDER = """
import os, sys, time
from nat_rewriter.kernel.lock import table_lock
with table_lock("natctl") as lock:
    os.set_inheritable(lock.fileno(), True)
    if os.fork() == 0:
        time.sleep(float(sys.argv[1]))
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_next_apply_waits_for_what_a_killed_one_has_left(lab: Lab) -> None:
    """A process that has the lock from a natctl that is gone: the kernel is still at its last transaction."""
    holder = lab.egress.popen([sys.executable, "-c", HOLDER, "3"], stdin=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    began = time.monotonic()
    holder.kill()
    holder.wait()
    lab.natctl("apply", "--config", lab.config(), expect=0)
    assert time.monotonic() - began > 2


def test_waiting_for_the_lock(lab: Lab) -> None:
    holder = lab.egress.popen([sys.executable, "-c", HOLDER, "0"], stdin=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    path = lab.config()
    began = time.monotonic()
    refused = lab.natctl("apply", "--config", path, "--wait", "1", expect=1)
    assert time.monotonic() - began > 1
    assert refused.stderr == f"natctl: lock table: held by process {holder.pid}: 'natctl'\n"
    waiting = lab.egress.popen([*NATCTL, "apply", "--config", path, "--wait", "60"])
    time.sleep(0.5)
    assert waiting.poll() is None
    assert holder.stdin is not None
    holder.stdin.close()
    assert waiting.wait(30) == 0


def test_many_at_once_go_one_at_a_time_and_none_is_lost(lab: Lab, state: Path) -> None:
    paths = [lab.config(extra=dnat(number)) for number in range(AT_ONCE)]
    started = [lab.egress.popen([*NATCTL, "apply", "--wait", "300", "--config", path]) for path in paths]
    for process in started:
        _, stderr = process.communicate(timeout=600)
        assert process.returncode == 0, stderr
    kept = generations(lab)
    assert [one["number"] for one in kept] == list(range(kept[-1]["number"] - len(kept) + 1, AT_ONCE + 1))
    assert {one["outcome"] for one in kept} == {"applied"}
    assert {one["source"] for one in kept} <= set(map(str, paths))
    assert len({one["source"] for one in kept}) == len(kept)
    lab.natctl("diff", "--config", kept[-1]["source"], expect=0)


def test_many_at_once_that_do_not_wait_are_told_who_is_at_work(lab: Lab, state: Path) -> None:
    paths = [lab.config(extra=dnat(number)) for number in range(AT_ONCE)]
    started = [lab.egress.popen([*NATCTL, "apply", "--config", path]) for path in paths]
    exit_codes = []
    for process in started:
        _, stderr = process.communicate(timeout=600)
        exit_codes.append(process.returncode)
        held = re.fullmatch(r"natctl: lock table: held by process \d+: 'natctl'\n", stderr)
        assert bool(held) == (process.returncode == 1), stderr
    assert set(exit_codes) <= {0, 1}
    kept = generations(lab)
    assert {one["outcome"] for one in kept} == {"applied"}
    assert kept[-1]["number"] == exit_codes.count(0) >= 1
    lab.natctl("diff", "--config", kept[-1]["source"], expect=0)


def dnat(number: int) -> str:
    """Return a DNAT rule that makes a configuration one of its kind."""
    return f'[[dnat]]\nname = "in"\nslice = "ams-1"\nports = ["9001"]\nto = "10.0.0.2:{number + 1}"\n'
