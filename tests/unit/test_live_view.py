"""The live view fits the terminal, whatever it has to show, and shows the worst first."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest
from rich.console import Console

from nat_rewriter.cli.live import ACTIONS_SHOWN, LiveView
from nat_rewriter.model.actions import Action, Result, SocketTarget, Verb
from nat_rewriter.model.findings import Finding, FlowParty, Kind, SocketParty
from nat_rewriter.model.overview import DestinationUse
from nat_rewriter.model.tuples import FlowTuple
from nat_rewriter.model.watching import SliceUse, WatchStatus

SIX = "2001:db8:1234:5678:9abc:def0:1111:"


def finding(kind: Kind, number: int) -> Finding:
    one = FlowTuple("tcp", ip_address(f"{SIX}{number:x}"), 9000, ip_address(f"{SIX}ffff"), 443)
    return Finding(
        kind, f"What number {number} is. " * 6, f"How to mend {number}. " * 4, "slice-one", "tcp", one, 63346,
        SocketParty(1, 4242, "a-rather-long-command"), FlowParty("nat-flow", f"{SIX}{number:x}", 39064, 5),
    )  # fmt: skip


LEAKS = [finding(Kind.PORT_LEAKED, number) for number in range(300)]
ORPHANS = [finding(Kind.ENTRY_ORPHANED, number) for number in range(5000)]
DRIFT = Finding(Kind.RULESET_DRIFT, "It differs. " * 30, "Mend it.")
SLICES = tuple(
    SliceUse(f"slice-number-{n}", n * 1000, f"tcp [{SIX}1]:443" if n else "", n, 200, 200 - n) for n in range(150)
)
DESTINATIONS = tuple(DestinationUse("slice-1", "tcp", f"[{SIX}{n:x}]:443", 150 - n, 200, 40) for n in range(10))
ACTION = Action(
    Verb.DESTROY_SOCKET, SocketTarget(LEAKS[0].tuple, SocketParty(), 1), LEAKS[0], Result.DONE
) if LEAKS[0].tuple else None  # fmt: skip


def screen(status: WatchStatus, width: int, height: int, actions: int = 0) -> list[str]:
    written = io.StringIO()
    console = Console(file=written, width=width, height=height, force_terminal=True, color_system=None)
    moment = datetime(2026, 11, 21, 19, 24, 22, tzinfo=UTC)
    view = LiveView(status, [(moment, ACTION)] * actions if ACTION else [])
    return [
        "".join(part.text for part in line) for line in console.render_lines(view, console.options.update(height=None))
    ]


def status(*found: Finding, slices: tuple[SliceUse, ...] = SLICES) -> WatchStatus:
    return WatchStatus(
        "live", 1_234_567, 99, 234_567.8, 12, 3, slices=slices, destinations=DESTINATIONS, findings=found
    )


@pytest.mark.parametrize("size", [(60, 12), (80, 24), (80, 40), (132, 43), (200, 50), (40, 8)])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 20, 5300])
@pytest.mark.parametrize("actions", [0, ACTIONS_SHOWN])
def test_it_fits(size: tuple[int, int], count: int, actions: int) -> None:
    width, height = size
    shown = screen(status(*[*ORPHANS, DRIFT, *LEAKS][-count:] if count else ()), width, height, actions)
    assert len(shown) <= height
    assert all(len(line) <= width for line in shown)
    assert shown[0].startswith("live  1,234,567 flows")
    if actions and height >= 12:
        assert shown[-1].startswith("19:24:22 action done destroy-socket")
    if count:
        assert any("port-leaked" in line for line in shown)


def test_the_worst_first_and_the_rest_counted() -> None:
    shown = screen(status(*ORPHANS, LEAKS[0]), 100, 24)
    places = [number for number, line in enumerate(shown) if line.startswith(("port-leaked", "entry-orphaned"))]
    assert shown[places[0]].startswith("port-leaked")
    assert "What number 0 is." in shown[places[0] + 1]
    listed = len(places) - 1
    assert shown[-1].startswith(f"and {5000 - listed:,} entry-orphaned: natctl check lists them all")


def test_every_finding_has_a_line_where_there_is_room() -> None:
    shown = screen(status(*LEAKS[:8], slices=()), 100, 60)
    assert sum(line.startswith("port-leaked") for line in shown) == 8
    assert not any("natctl check lists" in line for line in shown)
    assert sum("How to mend" in line for line in shown) >= 8


def test_slices_in_use_and_idle() -> None:
    shown = screen(status(), 100, 24)
    assert shown[3].startswith("slice-number-149  149,000  ███████████████····· 149/200")
    assert any(line.startswith("and ") and line.rstrip().endswith("more in use, 1 idle") for line in shown)
    assert "Nothing found." in "".join(shown)
    tall = screen(status(), 120, 45)
    assert any("150/200  50 free, 40 findable  slice-1" in line for line in tall)
