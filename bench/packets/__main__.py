"""``python -m bench.packets``: measure, print the tables, and put them into the documentation."""

from __future__ import annotations

import argparse
import sys

from bench.coexist.load import NoCompiler
from bench.packets.measuring import PLAIN, WAYS, costs
from bench.packets.place import NotMeasured, Shape
from bench.packets.tables import table, write
from nat_rewriter.errors import NatctlError
from netns_lab.enter import enter_if_needed

SIZES = (10, 1_000, 10_000)


def main() -> int:
    """Measure what was asked for; all of it where nothing was."""
    parser = argparse.ArgumentParser(prog="bench.packets", description="What a packet costs, against plain SNAT.")
    parser.add_argument("--slices", type=int, nargs="+", default=SIZES, help="default: %(default)s")
    parser.add_argument("--family", type=int, nargs="+", choices=[4, 6], default=(4, 6))
    parser.add_argument("--way", nargs="+", choices=[name for name in WAYS if name != PLAIN], help="default: all")
    parser.add_argument("--times", type=int, default=9, help="turns of each way; default: %(default)s")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/coexistence.md")
    options = parser.parse_args()
    ways = options.way or [name for name in WAYS if name != PLAIN]
    try:
        enter_if_needed()
        tables = [
            _shown(table(shape, costs(shape, options.times, ways)))
            for shape in (Shape(family, count) for family in options.family for count in options.slices)
        ]
    except (NoCompiler, NotMeasured, NatctlError) as error:
        print(f"bench.packets: {error}", file=sys.stderr)
        return 4
    if options.write:
        write(tables)
    return 0


def _shown(text: str) -> str:
    print(text, end="\n\n", flush=True)
    return text


if __name__ == "__main__":
    sys.exit(main())
