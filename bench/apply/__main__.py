"""``python -m bench.apply``: measure, print the table, and put it into the documentation."""

from __future__ import annotations

import argparse
import ctypes
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from bench import document
from bench.apply.configuration import configuration, one_rule_a_slice
from bench.document import table

TABLE = "natctl"
_CLONE_NEWNET = 0x40000000


class Took(NamedTuple):
    """Seconds, and seconds of processor time of all processes that were waited for; 0 where that is not known."""

    seconds: float
    cpu_s: float


def main() -> int:
    """Measure for each number of slices and each IP version."""
    parser = argparse.ArgumentParser(prog="bench.apply", description="Measure apply beside nft -f.")
    parser.add_argument("counts", nargs="*", type=int, help="numbers of slices; default: 1000 10000")
    parser.add_argument("--times", type=int, default=5, help="runs of each command, in turns")
    parser.add_argument("--no-write", action="store_true", help="leave docs/apply.md as it is")
    options = parser.parse_args()
    _leave_network()
    found = [_heading()]
    for count in options.counts or (1000, 10_000):
        for family in (4, 6):
            found.append(measure(count, family, options.times))
            print(found[-1], end="\n\n", flush=True)
    if not options.counts and not options.no_write:
        document.write("apply.md", "measured", *found)
    return 0


def measure(count: int, family: int, times: int) -> str:
    """Return the table of one number of slices."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        ways = _ways(place, count, family)
        took: dict[str, list[Took]] = {name: [] for name in ways}
        for _ in range(times):  # in turns, so that what else the machine does falls on all of them
            for name, way in ways.items():
                took[name].append(way())
        _delete("by_hand")
        changes = _resident(place, 4 * times)
        _delete(TABLE)
    return _table(f"{count:,} slices, IPv{family}, medians of {times} runs:", took, changes)


def _ways(place: Path, count: int, family: int) -> dict[str, Callable[[], Took]]:
    for name, changed in (("a", None), ("b", count // 2)):
        (place / f"{name}.toml").write_text(configuration(count, family, changed))
    rendered = subprocess.run(_natctl("render", place / "a.toml"), check=True, capture_output=True).stdout
    (place / "a.nft").write_bytes(rendered)
    (place / "by_hand.nft").write_text(one_rule_a_slice(count, family))
    state = ("--state", str(place / "state"))
    return {
        "`nft -f` of the same text, no table before": lambda: _after_deletion("nft", "-f", str(place / "a.nft")),
        "`nft -f` of the same text, in place of itself": lambda: _timed("nft", "-f", str(place / "a.nft")),
        "`nft -f`, a rule for each slice, rewriting alone": lambda: _timed("nft", "-f", str(place / "by_hand.nft")),
        "`natctl apply`, no table before": lambda: _after_deletion(*_natctl("apply", place / "a.toml", *state)),
        "the same, with all its modules loaded before": lambda: _first(place),
        "`natctl apply`, one slice changed": lambda: _timed(*_natctl("apply", place / "b.toml", *state)),
        "`natctl apply`, nothing changed": lambda: _timed(*_natctl("apply", place / "b.toml", *state)),
    }


def _resident(place: Path, times: int) -> dict[str, list[float]]:
    """Return the seconds from a change of the file until it is in force, and until the guard has settled."""
    files = (str(place / name) for name in ("a.toml", "b.toml", "state"))
    command = [sys.executable, "-m", "bench.apply.resident", *files, str(times)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    in_force, settled = zip(*(map(float, line.split()) for line in done.stdout.splitlines()), strict=True)
    return {
        "a process that stays, one slice changed: in force": [one / 1000 for one in in_force],
        "the same, and the guard settled": [one / 1000 for one in settled],
    }


def _first(place: Path) -> Took:
    """Return what an apply tells of itself, from the bytes of its file on."""
    _delete(TABLE)
    command = [sys.executable, "-m", "bench.apply.first", str(place / "a.toml"), str(place / "state")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Took(float(done.stdout), 0.0)


def _after_deletion(*command: str) -> Took:
    _delete(TABLE)
    return _timed(*command)


def _timed(*command: str) -> Took:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(seconds, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime)


def _natctl(command: str, config: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "nat_rewriter", command, "--config", str(config), *options]


def _delete(name: str) -> None:
    subprocess.run(["nft", f"add table inet {name}; delete table inet {name}"], check=True)


def _table(title: str, took: dict[str, list[Took]], changes: dict[str, list[float]]) -> str:
    fresh, again = (statistics.median(one.seconds for one in found) for found in list(took.values())[:2])
    rows = [
        (name, f"{seconds:.3f}", _cpu(found),
         f"{seconds / fresh:.2f}", f"{seconds / again:.2f}")
        for name, found in took.items()
        for seconds in [statistics.median(one.seconds for one in found)]
    ]  # fmt: skip
    rows += [
        (name, f"{seconds:.4f}", "", f"{seconds / fresh:.4f}", f"{seconds / again:.4f}")
        for name, found in changes.items()
        for seconds in [statistics.median(found)]
    ]
    return table(title, ("", "seconds", "processor s", "x nft -f, new", "x nft -f, again"), rows)


def _cpu(found: Sequence[Took]) -> str:
    seconds = statistics.median(one.cpu_s for one in found)
    return f"{seconds:.3f}" if seconds else ""


def _heading() -> str:
    version = subprocess.run(["nft", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    return document.heading("apply", f"nft {version}")


def _leave_network() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
        raise SystemExit("bench.apply: no network namespace of its own: run it as root, or by ./dev bench apply")


if __name__ == "__main__":
    sys.exit(main())
