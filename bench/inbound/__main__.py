"""``python -m bench.inbound``: measure, and print the table of ``docs/inbound.md``."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from bench.coexist.load import NoCompiler
from bench.coexist.tables import markdown
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
    parser.add_argument("--slices", type=int, nargs="+", default=(10, 1_000, 100_000), help="default: %(default)s")
    parser.add_argument("--family", type=int, nargs="+", choices=[4, 6], default=(4, 6))
    parser.add_argument("--times", type=int, default=15, help="turns of each way; default: %(default)s")
    options = parser.parse_args()
    try:
        enter_if_needed()
        for family in options.family:
            for count in options.slices:
                print(f"{count:,} slices of IPv{family}:\n\n{_table(_measured(family, count, options.times))}\n")
    except (NoCompiler, NotMeasured, NatctlError) as error:
        print(f"bench.inbound: {error}", file=sys.stderr)
        return 4
    return 0


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


def _table(seen: Mapping[str, Sequence[float]]) -> str:
    """Return medians, and the ratio to forwarding by a route of what the host adds to the sender's share."""
    floor, route = seen[FLOOR], seen[ROUTE]
    rows = []
    for name, values in seen.items():
        ratio = statistics.median(
            (value - least) / (plain - least) for value, plain, least in zip(values, route, floor, strict=True)
        )
        rows.append((name, f"{statistics.median(values):.0f}", "" if name == FLOOR else f"{ratio:.2f}"))
    return markdown(("", "ns a packet", "host's share, by that of a route"), rows)


if __name__ == "__main__":
    sys.exit(main())
