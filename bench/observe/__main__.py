"""``python -m bench.observe``: measure, print the tables, and put them into the documentation."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from bench import document
from bench.document import table
from bench.observe.configuration import ADDRESSES, write_configuration
from bench.observe.costs import Cost, compare, natctl
from bench.observe.events import Kept, highest_rate
from bench.observe.place import NotHere, Programs, measuring_place
from bench.observe.storms import storms

DOCUMENT = "observe.md"
CONNTRACK, FLOOR = "`conntrack -L -o extended`", "raw `recv` in C, counting only"
_LOCAL = ("--only", "port-leaked,port-remapped")
_SMALL = 1000


def main() -> int:
    """Run what was asked for; all of it where nothing was."""
    parser = argparse.ArgumentParser(prog="bench.observe", description="Measure check and watch. Needs root.")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=5, help="runs of each command, in turns")
    parser.add_argument("--storms", type=int, default=10)
    parser.add_argument("--events", type=int, default=3_000_000, help="of each storm")
    parser.add_argument("--no-write", action="store_true", help="leave docs/observe.md as it is")
    options = parser.parse_args()
    try:
        found = [_heading(), *(_measured(PARTS[part], options) for part in options.parts or PARTS)]
    except NotHere as error:
        print(f"bench.observe: {error}", file=sys.stderr)
        return 4
    if not options.parts and not options.no_write:
        document.write(DOCUMENT, "measured", *found)
        print(f"written to docs/{DOCUMENT}", file=sys.stderr)
    return 0


Part = Callable[[Programs, Path, argparse.Namespace], str]


def _measured(part: Part, options: argparse.Namespace) -> str:
    """Measure in a namespace that begins empty: what others leave in the kernel's one table is walked past as well."""
    with tempfile.TemporaryDirectory() as directory, measuring_place(options.entries) as programs:
        found = part(programs, Path(directory), options)
    print(found, end="\n\n", flush=True)
    return found


def _heading() -> str:
    version = subprocess.run(["conntrack", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return document.heading("observe", version)


def measure_dumps(programs: Programs, directory: Path, options: argparse.Namespace) -> str:
    """Look at a great table in every way there is."""
    config = {count: write_configuration(directory / f"{count}.toml", count) for count in (1, 4, ADDRESSES)}
    marking = write_configuration(directory / "marking.toml", marks=True)
    _prepare(marking)
    subprocess.run([programs.flood, "fill", str(options.entries)], check=True, stdout=subprocess.DEVNULL)
    commands = {
        FLOOR: [programs.listen, "dump"],
        CONNTRACK: ["conntrack", "-L", "-o", "extended"],
        "`cat /proc/net/nf_conntrack`": ["cat", "/proc/net/nf_conntrack"],
        "`natctl check`": natctl("check", "--config", str(marking)),
        **{
            f"`natctl check --only port-leaked,port-remapped`, {which}": natctl("check", *_LOCAL, "--config", str(path))
            for which, path in (
                *((_addresses(count), path) for count, path in config.items()),
                (f"{_addresses(ADDRESSES)}, `local_mark`", marking),
            )
        },
    }
    title = (
        f"{options.entries:,} entries in a hundred slices of {ADDRESSES} addresses; medians of {options.times} runs:"
    )
    return _cost_table(title, compare(commands, options.times))


def measure_start(programs: Programs, directory: Path, options: argparse.Namespace) -> str:
    """Look at a small table: what is left is the start."""
    config = write_configuration(directory / "natctl.toml")
    _prepare(config)
    subprocess.run([programs.flood, "fill", str(_SMALL)], check=True, stdout=subprocess.DEVNULL)
    commands = {
        FLOOR: [programs.listen, "dump"],
        CONNTRACK: ["conntrack", "-L", "-o", "extended"],
        "`natctl check`": natctl("check", "--config", str(config)),
        "`natctl check --only port-leaked,port-remapped`": natctl("check", *_LOCAL, "--config", str(config)),
        "`natctl --help`": natctl("--help"),
    }
    return _cost_table(f"{_SMALL:,} entries:", compare(commands, 2 * options.times), ratios=False)


def measure_events(programs: Programs, directory: Path, options: argparse.Namespace) -> str:
    """Find out how many events a second each listener keeps up with."""
    config = write_configuration(directory / "natctl.toml")
    _prepare(config)
    listeners = {
        "`conntrack -E`": (["conntrack", "-E"], 6_000, 0.5),
        "`conntrack -E -b 33554432`": (["conntrack", "-E", "-b", "33554432"], 6_000, 0.5),
        "raw `recv` in C, counting only, 32 MiB": ([programs.listen, "events"], 60_000, 0.5),
        "`natctl watch --json`": (natctl("watch", "--json", "--config", str(config)), 60_000, 3.0),
    }
    kept = {
        name: highest_rate(programs.flood, command, rate, 4.0, settle_s)
        for name, (command, rate, settle_s) in listeners.items()
    }
    return _event_table(kept)


def measure_storms(programs: Programs, directory: Path, options: argparse.Namespace) -> str:
    """Overwhelm a watcher, and see whether it knows."""
    config = write_configuration(directory / "natctl.toml")
    rows = [
        (
            str(number), f"{found['made']:,}", f"{found['made'] / found['seconds']:,.0f}", f"{found['dropped']:,}",
            str(found["told"]), f"{found['resync_seconds']:.1f}", f"{found['entries']:,}",
            "yes" if found["equal"] and found["entries"] == found["counted"] else "NO",
            f"{found['memory_kib'] / 1024:.0f}",
        )
        for number, found in enumerate(storms(programs.flood, config, options.events, 100_000, options.storms), 1)
    ]  # fmt: skip
    columns = ("storm", "events", "events/s", "lost", "told", "resync, s", "entries left", "table equal", "peak MiB")
    return table("Storms, with the reader stopped for two seconds in the middle:", columns, rows)


PARTS: dict[str, Part] = {
    "dumps": measure_dumps,
    "start": measure_start,
    "events": measure_events,
    "storms": measure_storms,
}


def _prepare(config: Path) -> None:
    """Have the configuration in force, so that a look finds what it expects."""
    state = str(config.with_suffix(".state"))
    subprocess.run(natctl("apply", "--config", str(config), "--state", state), check=True, stdout=subprocess.DEVNULL)


def _addresses(count: int) -> str:
    return f"{count} address{'es' * (count > 1)}"


def _cost_table(title: str, costs: Mapping[str, Cost], *, ratios: bool = True) -> str:
    columns = ["", "seconds", "processor s", "peak MiB"]
    if ratios:
        columns += ["x conntrack -L", "x floor", "processor, x floor"]
    theirs, floor = costs[CONNTRACK], costs[FLOOR]
    rows = []
    for name, cost in costs.items():
        row = [name, f"{cost.seconds:.2f}", f"{cost.cpu_s:.2f}", f"{cost.memory_mib:.0f}"]
        if ratios:
            row += [
                f"1/{theirs.seconds / cost.seconds:.1f}", f"{cost.seconds / floor.seconds:.2f}",
                f"{cost.cpu_s / floor.cpu_s:.2f}",
            ]  # fmt: skip
        rows.append(row)
    return table(title, columns, rows)


def _event_table(kept: Mapping[str, Kept]) -> str:
    theirs = max((one for name, one in kept.items() if name.startswith("`conntrack")), key=lambda one: one.rate)
    rows = [
        (
            name, f"{'at least ' * one.limited}{one.rate:,.0f}", f"{one.cpu_us:.1f}", f"{one.rate / theirs.rate:.1f}",
            f"1/{theirs.cpu_us / one.cpu_us:.1f}",
        )
        for name, one in kept.items()
    ]  # fmt: skip
    columns = ("", "events/s without loss", "processor us an event", "x rate of conntrack -E", "x its processor time")
    return table("Events, half of them NEW, half DESTROY:", columns, rows)


if __name__ == "__main__":
    sys.exit(main())
