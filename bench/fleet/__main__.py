"""``python -m bench.fleet``: measure, print the tables, and with ``--write`` put them into the documentation."""

from __future__ import annotations

import argparse
import functools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from math import inf

from bench import document
from bench.document import table
from bench.fleet import hosts
from bench.fleet.churn import churn
from bench.fleet.filling import OF_HOST, Weight, weigh
from bench.fleet.place import cluster, pool_of
from bench.fleet.simulation import Cluster, Pause, storm
from bench.fleet.storms import BEGIN, QUESTIONS, RENEW, Asked, ask
from bench.fleet.watching import watch_fan_out
from nat_rewriter.model.pools import StoreAddress
from nat_rewriter.pool import open_store
from nat_rewriter.pool.demand import pause_in_vain_s

_TTL_S, _STEPS = 30, 5


def main() -> int:
    """Measure all parts, or those that are named."""
    parser = argparse.ArgumentParser(prog="bench.fleet", description="Measure pools on a real etcd, and simulate more.")
    parser.add_argument("parts", nargs="*", choices=[*_PARTS, []], metavar="PART", help=f"default: {' '.join(_PARTS)}")
    parser.add_argument("--slices", nargs="+", type=int, default=[10_000, 100_000, 1_000_000], help="part store")
    parser.add_argument("--hosts", nargs="+", type=int, default=[1, 10, 50], help="part churn")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement of churn and asking")
    parser.add_argument("--write", action="store_true", help="put what was measured into docs/fleet.md")
    options = parser.parse_args()
    if not shutil.which("etcd"):
        raise SystemExit("bench.fleet: needs etcd: apt-get install etcd-server")
    for part in options.parts or _PARTS:
        found = "\n\n".join((_heading(part), *_PARTS[part](options)))
        print(found, end="\n\n", flush=True)
        if options.write:
            document.write("fleet.md", f"measured {part}", found)
    return 0


def _churn(options: argparse.Namespace) -> list[str]:
    """Measure hosts that take and give, on etcd and on SQLite."""
    rows = list[Sequence[str]]()
    verdicts = list[str]()
    for count in options.hosts:
        with cluster() as running:
            done = churn(running, count, seconds=options.seconds, hold_down_s=900)
        fleet, seen = done.fleet, done.seen
        rows.append((f"etcd, three members, hosts: {count}", *_pace(fleet), f"{done.etcd_s / done.pairs * 1000:.1f}"))
        verdicts.append(
            f"{count} hosts: {done.pairs:,} pairs in {fleet.seconds:.1f} s; acquired {seen.acquired:,}, released "
            f"{seen.released:,}, held at the end {seen.left.held}, resting {seen.left.resting:,}; doubled or outside "
            f"their keys: {len(seen.faults)}; out of turn in the histories: {len(done.told_wrong)}."
        )
    with tempfile.TemporaryDirectory() as directory:
        store = StoreAddress("sqlite", f"{directory}/pools.sqlite")
        with open_store(store) as opened:
            opened.define(pool_of(64 * 1024, hold_down_s=900))
        fleet = hosts.run([store], hosts.pair, seconds=options.seconds / 3)
    rows.append(("SQLite, one process", *_pace(fleet), ""))
    columns = (
        "",
        "pairs a minute",
        "acquire p50, ms",
        "p99, ms",
        "host, processor ms a pair",
        "etcd, processor ms a pair",
    )
    return [table("Slices taken and given back at once, as fast as it goes:", columns, rows), "\n".join(verdicts)]


def _pace(fleet: hosts.Fleet) -> tuple[str, ...]:
    pairs = len(fleet.took_s)
    rate, each_ms = pairs / fleet.seconds * 60, fleet.processor_s / pairs * 1000
    return f"{rate:,.0f}", *_quantiles(fleet), f"{each_ms:.1f}"


def _quantiles(fleet: hosts.Fleet) -> tuple[str, str]:
    return f"{fleet.quantile_ms(0.5):.1f}", f"{fleet.quantile_ms(0.99):.1f}"


def _store(options: argparse.Namespace) -> list[str]:
    """Measure what a store weighs."""
    found = [weigh(slices) for slices in options.slices]
    rows = [(name, *(show(each) for each in found)) for name, show in _WEIGHTS.items()]
    columns = ("slices held", *(f"{each.slices:,}" for each in found))
    return [table(f"One member, hosts with {OF_HOST} slices each, four of five slices taken:", columns, rows)]


_WEIGHTS: dict[str, Callable[[Weight], str]] = {
    "hosts, each with two leases": lambda one: f"{one.slices // OF_HOST:,}",
    "database, MiB": lambda one: f"{one.file_mib:,.0f}",
    "memory of the member, MiB": lambda one: f"{one.memory_mib:,.0f}",
    "one slice acquired, ms": lambda one: f"{one.acquire_ms:.1f}",
    "one renewal of a host, ms": lambda one: f"{one.renew_ms:.1f}",
    "history of one slice, ms": lambda one: f"{one.history_ms:.1f}",
    "all slices read, s": lambda one: f"{one.read_all_s:.1f}",
    "compaction, s": lambda one: f"{one.compact_s:.1f}",
    "defragmentation, during which it answers nobody, s": lambda one: f"{one.defragment_s:.1f}",
    "killed and started until it answers, s": lambda one: f"{one.restart_s:.1f}",
}


def _asking(options: argparse.Namespace) -> list[str]:
    """Measure what hosts ask, and tell what a larger fleet would make of that."""
    asked = ask(options.seconds)
    rows = [
        (each.what, f"{each.a_second:,.0f}", *_quantiles(each.fleet), f"{each.host_ms:.2f}", f"{each.etcd_ms:.2f}")
        for each in asked.values()
    ]
    columns = (
        "sixteen hosts ask at once",
        "a second",
        "p50, ms",
        "p99, ms",
        "host, processor ms",
        "etcd, processor ms",
    )
    return [table("What a host asks of three members:", columns, rows), _on_paper(asked), *_simulated(asked)]


def _on_paper(asked: dict[str, Asked]) -> str:
    columns = (
        "hosts",
        "renewals a second",
        "keep-alives a second",
        "processors of the cluster for them",
        "all begin, processor s",
    )
    rows = [
        (f"{count:,}", f"{count * _STEPS / _TTL_S:,.0f}", f"{2 * count * _STEPS / _TTL_S:,.0f}",
         f"{count * _STEPS / _TTL_S * asked[RENEW].etcd_ms / 1000:.2f}", f"{count * asked[BEGIN].etcd_ms / 1000:.1f}")
        for count in (50, 500, 2_000, 10_000)
    ]  # fmt: skip
    return table(f"On paper, with `ttl_s = {_TTL_S}` and {_STEPS} renewals in a term:", columns, rows)


def _simulated(asked: dict[str, Asked]) -> list[str]:
    cost_s, step_s = asked[BEGIN].etcd_ms / 1000 / QUESTIONS, _TTL_S / _STEPS
    natctl: Pause = functools.partial(pause_in_vain_s, step_s)
    ways: dict[str, tuple[float, Pause]] = {
        "at once, and again with each step": (0.0, lambda failures, chance: step_s),
        "at once, and again as natctl does": (0.0, natctl),
        "within 30 s, and again as natctl does": (30.0, natctl),
    }
    rows = list[Sequence[str]]()
    for count in (1_000, 10_000):
        for processors in (2, 4, 8):
            for way, (spread_s, pause) in ways.items():
                done = storm(count, Cluster(processors, cost_s), questions=QUESTIONS, spread_s=spread_s, pause_s=pause)
                rows.append((f"{count:,}, {way}", str(processors), _seconds(done.half_s), _seconds(done.all_s),
                             f"{done.in_vain / done.asked:.0%}"))  # fmt: skip
    columns = ("hosts begin", "processors of etcd", "half of them hold, s", "all, s", "answers in vain")
    return [table(f"Simulated, with {cost_s * 1000:.2f} ms a question as measured above:", columns, rows)]


def _seconds(value: float) -> str:
    return "never" if value == inf else f"{value:.1f}"


def _watch(options: argparse.Namespace) -> list[str]:
    """Measure what it costs to tell everybody of everything."""
    found = watch_fan_out([50, 200, 500], changes=20)
    rows = [
        (str(one.watchers), f"{one.last_ms:.1f}", f"{one.bytes_each:,.0f}", f"{one.each_us:.0f}", _ceiling(one.each_us))
        for one in found
    ]
    columns = ("watchers", "until the last knows, ms", "bytes an event", "etcd, processor us an event",
               "changes a second that 10,000 watchers let 8 processors tell")  # fmt: skip
    return [table(f"A host with {OF_HOST} slices changes, and everybody watches:", columns, rows)]


def _ceiling(each_us: float) -> str:
    return f"{8 / (10_000 * each_us / 1e6):.1f}" if each_us else ""


_PARTS: dict[str, Callable[[argparse.Namespace], list[str]]] = {
    "churn": _churn,
    "store": _store,
    "asking": _asking,
    "watch": _watch,
}


def _heading(part: str) -> str:
    version = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=True).stdout.split()[2]
    return document.heading(f"fleet {part}", f"etcd {version}; hosts and cluster share the processors")


if __name__ == "__main__":
    sys.exit(main())
