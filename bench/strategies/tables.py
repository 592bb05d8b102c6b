"""What was measured, as Markdown tables, and their places in the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench import document
from bench.strategies.contention import HELD, PORTS, WANTED, Contention
from bench.strategies.speed import CONNECTIONS, LEASES, NATIVE, ROUNDS, Bulk, Speed
from bench.strategies.ways import BARE_RANGE, Way


def speed_table(ways: Sequence[Way], seen: Mapping[str, Speed]) -> str:
    """Return connections a second, and how they compare with plain sockets by processor time."""
    plain, native = seen[ways[1].name].cpu_us, seen[next(iter(NATIVE))].cpu_us
    protects = {way.name: way.protects for way in ways}
    rows = [
        (
            name, f"{one.per_second:.0f}", f"{plain / one.cpu_us:.2f}", f"{native / one.cpu_us:.2f}",
            f"{one.p50_us:.1f}", f"{one.p99_us:.0f}", f"{one.cpu_us:.1f}", protects.get(name, ""),
        )
        for name, one in seen.items()
    ]  # fmt: skip
    columns = (
        "",
        "connections/s",
        "of plain under confine, by CPU",
        "of the same in C",
        "p50 us",
        "p99 us",
        "CPU us each",
        "protects against",
    )
    title = (
        f"One thread of Python, {CONNECTIONS} connections one after the other, each figure the best of {ROUNDS} rounds;"
        f" the time is the application's, from the call until the socket is connected. {BARE_RANGE} is what port-range "
        f"is made of, with nothing around it. {document.where()}"
    )
    return document.table(title, columns, rows)


def bulk_table(held: Mapping[str, Bulk], connected: Mapping[str, Bulk]) -> str:
    """Return leases a second."""
    rows = [
        (
            f"lease, {name}", f"{one.per_second:.0f}", f"{one.per_cpu_second:.0f}",
            f"{connected[name].per_second:.0f}", f"{connected[name].per_cpu_second:.0f}",
        )
        for name, one in held.items()
    ]  # fmt: skip
    columns = ("", "leases/s", "a CPU second", "leased and connected/s", "a CPU second")
    return document.table(
        f"`acquire_many` of {LEASES} leases, best of {ROUNDS} rounds. {document.where()}", columns, rows
    )


def contention_table(seen: Mapping[str, Contention]) -> str:
    """Return how connections fared beside NAT flows."""
    rows = [(name, one.exact, one.moved, one.failed, one.leaked, f"{one.longest_ms:.1f}") for name, one in seen.items()]
    columns = ("", "with their port", "with another port", "failed", "leaked packets", "longest ms")
    title = (
        f"{len(PORTS)} ports, {HELD} of them held by NAT flows to one server, {WANTED} local connections to it. "
        f"{document.where()}"
    )
    return document.table(title, columns, rows)


def write(part: str, table: str) -> None:
    """Put a table into the documentation."""
    document.write("strategies.md", part, table)
