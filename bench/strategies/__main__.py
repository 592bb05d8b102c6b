"""``python -m bench.strategies``: measure, print the tables, and put them into the documentation."""

from __future__ import annotations

import argparse
import sys

from bench.coexist.load import NoCompiler
from bench.strategies import tables
from bench.strategies.contention import contend
from bench.strategies.speed import measure_bulk, measure_speed
from bench.strategies.ways import all_ways, bare_range
from nat_rewriter.errors import NatctlError
from nat_rewriter.lease import STRATEGIES
from netns_lab.enter import enter_if_needed

PARTS = ("speed", "bulk", "contention")


def main() -> int:
    """Run what was asked for; all of it where nothing was."""
    parser = argparse.ArgumentParser(prog="bench.strategies", description="Compare the ways to use a port of a slice.")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--no-write", action="store_true", help="leave docs/strategies.md as it is")
    options = parser.parse_args()
    try:
        enter_if_needed()
        for part in options.parts or PARTS:
            text = _measured(part)
            print(text, end="\n\n", flush=True)
            if not options.no_write:
                tables.write(part, text)
    except (NoCompiler, NatctlError) as error:
        print(f"bench.strategies: {error}", file=sys.stderr)
        return 4
    return 0


def _measured(part: str) -> str:
    if part == "speed":
        return tables.speed_table(all_ways(), measure_speed([*all_ways(), bare_range()]))
    if part == "contention":
        return tables.contention_table({way.name: contend(way) for way in all_ways()})
    held = [name for name, each in STRATEGIES.items() if each.holds]
    return tables.bulk_table(measure_bulk(held), measure_bulk(held, connected=True))


if __name__ == "__main__":
    sys.exit(main())
