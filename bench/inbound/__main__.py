"""``python -m bench.inbound``: measure, print the tables, and put them into the documentation."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from bench import document
from bench.coexist.load import NoCompiler
from bench.inbound.following import following
from bench.inbound.place import Place, place
from bench.packets.place import NotMeasured
from nat_rewriter.errors import NatctlError
from netns_lab.enter import enter_if_needed

ROUNDS = 8
FLOOR, ROUTE = "dropped on arrival", "forwarded by a route"
WAYS: Mapping[str, Callable[[Place], None]] = {
    FLOOR: Place.drop,
    ROUTE: lambda at: None,
    "forwarded by a route, again": lambda at: None,
    "forwarded, tracked by conntrack": Place.track,
    "handed over": Place.hand_over,
}


def main() -> int:
    """Measure what was asked for; all of it where nothing was."""
    parser = argparse.ArgumentParser(prog="bench.inbound", description="What handing a packet over costs.")
    parser.add_argument("--slices", type=int, nargs="+", default=(1_000, 100_000), help="default: %(default)s")
    parser.add_argument("--family", type=int, nargs="+", choices=[4, 6], default=(4, 6))
    parser.add_argument("--times", type=int, default=15, help="turns of each way; default: %(default)s")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/inbound.md")
    parser.add_argument("--following", action="store_true", help="how soon a change in etcd is in the kernel, instead")
    options = parser.parse_args()
    try:
        enter_if_needed()
        if options.following:
            for count in options.slices:
                seen = following(count)
                print(
                    f"{count:,} slices: read in {seen.read_s:.2f} s, in the kernel {seen.filled_s:.2f} s later;"
                    f" a change {seen.change_ms:.0f} ms"
                )
            return 0
        tables = [_shown(family, count, options.times) for family in options.family for count in options.slices]
    except (NoCompiler, NotMeasured, NatctlError) as error:
        print(f"bench.inbound: {error}", file=sys.stderr)
        return 4
    if options.write:
        document.write("inbound.md", "inbound", document.where(), *tables)
    return 0


def _shown(family: int, count: int, times: int) -> str:
    seen = _measured(family, count, times)
    spent = statistics.median(seen[ROUTE])
    table = _table(f"{count:,} slices of IPv{family}; by a route a packet takes {spent:.0f} ns in all:", seen)
    print(table, end="\n\n", flush=True)
    return table


def _measured(family: int, count: int, times: int) -> dict[str, list[float]]:
    """Return nanoseconds a packet, by way, all ways in turns."""
    seen: dict[str, list[float]] = {name: [] for name in WAYS}
    with ExitStack() as stack:
        places = {name: stack.enter_context(place(family, count)) for name in WAYS}
        for name, at in places.items():
            WAYS[name](at)
            at.send(1, expected=name != FLOOR)
        for _ in range(times):
            for name, at in places.items():
                seen[name].append(at.send(ROUNDS, expected=name != FLOOR))
    return seen


def _table(title: str, seen: Mapping[str, Sequence[float]]) -> str:
    """Return what packets cost, by what they cost by a route: medians of turns, between which the speed changes."""
    floor, route = seen[FLOOR], seen[ROUTE]
    rows = []
    for name, values in seen.items():
        whole = statistics.median(value / plain for value, plain in zip(values, route, strict=True))
        share = statistics.median(
            (value - least) / (plain - least) for value, plain, least in zip(values, route, floor, strict=True)
        )
        rows.append((name, f"{whole:.2f}", f"{share:.2f}"))
    return document.table(title, ("times a route", "sender, host and receiver", "host alone"), rows)


if __name__ == "__main__":
    sys.exit(main())
