"""``python -m bench.coexist``: measure, print the tables, and put them into the documentation."""

from __future__ import annotations

import argparse
import shutil
import sys

from bench.coexist import tables
from bench.coexist.contention import contend
from bench.coexist.cost import costs
from bench.coexist.load import NoCompiler
from bench.coexist.reuse import measure_reuse
from bench.coexist.ways import contended_ways
from nat_rewriter.errors import NatctlError
from nat_rewriter.model.slices import PortRange
from netns_lab.enter import enter_if_needed

SLICES = (PortRange(9_000, 9_099), PortRange(10_240, 12_287))


def main() -> int:
    """Run what was asked for; all of it where nothing was."""
    parser = argparse.ArgumentParser(prog="bench.coexist", description="Compare the ways to share a slice.")
    parser.add_argument("parts", nargs="*", choices=["contention", "cost", "reuse", []], help="default: all")
    parser.add_argument("--no-write", action="store_true", help="leave docs/coexistence.md as it is")
    options = parser.parse_args()
    parts = options.parts or ["contention", "cost", "reuse"]
    try:
        enter_if_needed()
        found = [table for part in parts for table in _measured(part)]
    except (NoCompiler, NatctlError) as error:
        print(f"bench.coexist: {error}", file=sys.stderr)
        return 4
    if not options.parts and not options.no_write:
        tables.write(found)
        print(f"written to docs/{tables.DOCUMENT}", file=sys.stderr)
    return 0


def _measured(part: str) -> list[str]:
    if part == "contention":
        if not shutil.which("haproxy"):
            print("HAProxy is not installed: left out", file=sys.stderr)
        return [_shown(_contention(ports)) for ports in SLICES]
    return [_shown(tables.cost_table(costs()) if part == "cost" else tables.reuse_table(measure_reuse()))]


def _contention(ports: PortRange) -> str:
    return tables.contention_table(ports, {way.name: contend(way, ports) for way in contended_ways()})


def _shown(table: str) -> str:
    print(table, end="\n\n", flush=True)
    return table


if __name__ == "__main__":
    sys.exit(main())
