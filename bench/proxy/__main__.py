"""``python -m bench.proxy``: measure, print the tables, and put them into docs/proxy.md and docs/strategies.md."""

from __future__ import annotations

import argparse
import resource
import subprocess
import time
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from bench import document
from bench.proxy.engines import ENGINES, FRONT, haproxy_twice, natctl, started
from bench.proxy.place import measuring_place, memory_mib, processor_s, tree
from bench.proxy.ten_ports import DESTINATIONS, EACH, carried

WIDE = "10000-59999"
FLOWS, AT_ONCE = 8, 64
HELD = 10_000
HALVES = "10000-34999", "35000-59999"


class Run(NamedTuple):
    """One measurement of one engine."""

    gbit_s: float
    all_s_per_gb: float
    own_s_per_gb: float
    per_second: float
    own_us: float
    failed: int
    p50_us: int
    p99_us: int


def main() -> None:
    """Measure all engines in turns."""
    parser = argparse.ArgumentParser(prog="bench.proxy", description="Measure the proxy beside HAProxy.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--no-write", action="store_true", help="leave the documents as they are")
    options = parser.parse_args()
    version = subprocess.run(["haproxy", "-v"], capture_output=True, text=True, check=True).stdout.split()[2]
    heading = _heading(version, options.rounds)
    with measuring_place() as (load, directory, server):
        runs: dict[str, list[Run]] = {name: [] for name in ENGINES}
        for _ in range(options.rounds):
            for name, command in ENGINES.items():
                with started(command(directory, WIDE)) as process:
                    runs[name].append(_run(load, process.pid, server, options.seconds))
        held = {
            "`natctl proxy`": _hold(load, natctl(directory, WIDE, 2 * HELD), HELD),
            "HAProxy, TCP mode, two processes": _hold(load, haproxy_twice(directory, *HALVES), HELD),
        }
    short = _short_table(runs)
    found = "\n\n".join((heading, _flow_table(runs), short, _memory_table(held), _ports_table(carried())))
    print(found)
    if not options.no_write:
        document.write("proxy.md", "measured", found)
        document.write("strategies.md", "proxies", heading, short)


def _run(load: str, pid: int, server: int, seconds: float) -> Run:
    target = [*map(str, FRONT)]
    own, other = processor_s(tree(pid)), processor_s([server]) + _children_s()
    flow = subprocess.run([load, "flow", *target, str(FLOWS), str(seconds)], capture_output=True, text=True, check=True)
    own, other = processor_s(tree(pid)) - own, processor_s([server]) + _children_s() - other
    count, nanoseconds = map(int, flow.stdout.split())
    moved_gb = count / 1e9 * (seconds + 0.5) / seconds  # the half second before the count begins costs as well
    time.sleep(0.5)
    begun = processor_s(tree(pid))
    rate = subprocess.run(
        [load, "rate", *target, str(AT_ONCE), str(seconds)], capture_output=True, text=True, check=True
    )
    done, failed, took, *percentiles = map(int, rate.stdout.split())
    own_us = (processor_s(tree(pid)) - begun) / done * 1e6
    speed = count * 8 / nanoseconds, (own + other) / moved_gb, own / moved_gb
    return Run(*speed, done * 1e9 / took, own_us, failed, *percentiles)


def _children_s() -> float:
    """Return the processor time of the load generators that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _hold(load: str, command: Sequence[str], count: int) -> tuple[int, float, float]:
    """Return how many connections were held, and the memory before and then, in MiB."""
    with started(command) as process:
        before = memory_mib(tree(process.pid))
        words = [load, "hold", *map(str, FRONT), str(count)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout
            there = int(holder.stdout.readline())
            return there, before, memory_mib(tree(process.pid))


def _heading(version: str, rounds: int) -> str:
    return document.heading(
        "proxy",
        f"HAProxy {version.split('-')[0]}; medians of {rounds} rounds, in turns, everything on the loopback device of "
        "one namespace; two workers, two threads",
    )


def _medians(runs: dict[str, list[Run]]) -> tuple[dict[str, Run], Run]:
    """Return the median run of each engine, and ours."""
    medians = {name: Run(*map(median, zip(*found, strict=True))) for name, found in runs.items()}
    return medians, next(iter(medians.values()))


def _flow_table(runs: dict[str, list[Run]]) -> str:
    medians, ours = _medians(runs)
    lines = [
        f"| {FLOWS} flows | Gbit/s | natctl is | CPU-s a GB, all processes | natctl takes | the proxy's own |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in medians.items():
        ratio = [f"{ours.gbit_s / one.gbit_s:.2f} x", f"{ours.all_s_per_gb / one.all_s_per_gb:.2f} x"]
        lines.append(
            f"| {name} | {one.gbit_s:.1f} | {ratio[0]} | {one.all_s_per_gb:.2f} | {ratio[1]} | {one.own_s_per_gb:.2f} |"
        )
    return "\n".join(lines)


def _short_table(runs: dict[str, list[Run]]) -> str:
    medians, ours = _medians(runs)
    lines = [
        f"| short connections, {AT_ONCE} at once | a second | natctl is | p50 us | p99 us | the proxy's CPU us each "
        "| failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in medians.items():
        lines.append(
            f"| {name} | {one.per_second:,.0f} | {ours.per_second / one.per_second:.2f} x | {one.p50_us:,.0f} "
            f"| {one.p99_us:,.0f} | {one.own_us:.1f} | {one.failed:.0f} |"
        )
    return "\n".join(lines)


def _memory_table(held: dict[str, tuple[int, float, float]]) -> str:
    lines = ["| | connections held | MiB before | MiB then, all processes | KiB each |", "|---|---|---|---|---|"]
    for name, (count, before, then) in held.items():
        each = (then - before) * 1024 / count
        lines.append(f"| {name} | {count:,} | {before:.0f} | {then:.0f} | {each:.1f} |")
    return "\n".join(lines)


def _ports_table(found: dict[str, int]) -> str:
    asked = len(DESTINATIONS) * EACH
    lines = [
        f"| a slice of 10 ports, {EACH} connections to each of {len(DESTINATIONS)} destinations | work |",
        "|---|---|",
    ]
    return "\n".join(lines + [f"| {name} | {count} of {asked} |" for name, count in found.items()])


if __name__ == "__main__":
    main()
