"""What was measured, as Markdown tables, and their place in the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench import document
from bench.coexist.contention import Contention
from bench.coexist.cost import KINDS
from bench.coexist.load import Outcome
from bench.coexist.ways import PLAIN
from nat_rewriter.model.slices import PortRange

DOCUMENT = "coexistence.md"


def contention_table(ports: PortRange, seen: Mapping[str, Contention]) -> str:
    """Return how local sockets and flows fared, a row for each way."""
    some = next(iter(seen.values()))
    head = (
        f"{len(ports)} ports, {some.flows.begun} of them held by clients' connections to one server, "
        f"{some.sockets.begun} local sockets that want to connect to it from random ports:"
    )
    rows = [
        (
            name, f"{one.sockets.worked} of {one.sockets.begun}", one.sockets.hung, one.leaked,
            f"{one.sockets.p50_ms:.1f}", f"{one.sockets.p99_ms:.1f}", f"{one.sockets.tries / one.sockets.begun:.1f}",
            f"{one.socket_cpu_us:.0f}", f"{one.flow_cpu_us:.0f}",
        )
        for name, one in seen.items()
    ]  # fmt: skip
    columns = (
        "", "sockets that connect", "hang", "leaked packets", "p50 ms", "p99 ms", "tries each", "CPU us a socket",
        "CPU us a client's connection",
    )  # fmt: skip
    return document.table(head, columns, rows)


def cost_table(seen: Mapping[str, Mapping[str, float]]) -> str:
    """Return nanoseconds per packet and their ratio to one plain SNAT rule."""
    rows = [(name, *(_with_ratio(ns, seen[PLAIN][kind]) for kind, ns in kinds.items())) for name, kinds in seen.items()]
    title = (
        "A hundred clients with a slice each, against one plain SNAT rule for all; microseconds a packet (and times "
        "plain SNAT), median. The first column includes the client's own work, the others are the egress host's alone; "
        "the last one is a packet of a flow that is there already:"
    )
    columns = ("", *(f"first packet, {kind}" if kind != "established" else kind for kind in KINDS))
    return document.table(title, columns, rows)


def reuse_table(seen: Mapping[str, Outcome]) -> str:
    """Return connections a second, and those that did not go well."""
    rows = [
        (name, f"{one.per_second:.0f}", one.slow, one.hung, one.broken, f"{one.p50_ms:.1f}", f"{one.p99_ms:.1f}")
        for name, one in seen.items()
    ]
    columns = ("", "connections/s", "waited for a second SYN", "hang", "broken", "p50 ms", "p99 ms")
    title = (
        "Short connections of 50 clients, 64 at a time, through 1,000 ports to one server port that closes first, "
        "after each port was used once:"
    )
    return document.table(title, columns, rows)


def write(tables: Sequence[str]) -> None:
    """Put the tables into the documentation."""
    document.write(DOCUMENT, "measured", document.where(), *tables)


def _with_ratio(nanoseconds: float, plain: float) -> str:
    return f"{nanoseconds / 1e3:.2f} ({nanoseconds / plain:.2f})"
