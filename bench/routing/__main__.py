"""``python -m bench.routing``: measure, print the table, and put it into the documentation."""

from __future__ import annotations

import argparse
import sys

from bench import document
from bench.coexist.load import NoCompiler
from bench.routing.measuring import NOTHING, Measured, measure
from nat_rewriter.errors import NatctlError
from netns_lab.enter import enter_if_needed

DOCUMENT = "routing.md"
COLUMNS = (
    "in place", "packet received, own address", "packet received, port of the slice", "datagram sent",
    "TCP connect, median", "99th percentile",
)  # fmt: skip
NAMES = {NOTHING: "nothing", "off": "rules and marks alone (`off`)"}


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="bench.routing", description="Measure what answers to early demux cost.")
    parser.add_argument("--no-write", action="store_true", help=f"leave docs/{DOCUMENT} as it is")
    options = parser.parse_args()
    try:
        enter_if_needed()
        table = costs_table(measure())
    except (NoCompiler, NatctlError) as error:
        print(f"bench.routing: {error}", file=sys.stderr)
        return 4
    print(table)
    if not options.no_write:
        document.write(DOCUMENT, "costs", table)
        print(f"written to docs/{DOCUMENT}", file=sys.stderr)
    return 0


def costs_table(found: dict[str, Measured]) -> str:
    """Return the costs as a table, each with its ratio to nothing in place."""
    base = found[NOTHING]
    rows = [_row(NAMES.get(way, f"`{way}`"), measured, base) for way, measured in found.items()]
    return document.table(document.where(), COLUMNS, rows)


def _row(name: str, measured: Measured, base: Measured) -> tuple[str, ...]:
    return (
        name,
        f"{measured.receive_ns:.0f} ns ({measured.receive_ns / base.receive_ns:.2f})",
        f"{measured.receive_slice_ns:.0f} ns ({measured.receive_slice_ns / base.receive_slice_ns:.2f})",
        f"{measured.send_ns:.0f} ns ({measured.send_ns / base.send_ns:.2f})",
        f"{measured.connect_us:.1f} µs ({measured.connect_us / base.connect_us:.2f})",
        f"{measured.connect_p99_us:.1f} µs",
    )


if __name__ == "__main__":
    sys.exit(main())
