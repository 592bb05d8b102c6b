"""What a person sees of a proxy: the live view, and lines."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from ipaddress import IPv4Address

import pytest
from rich.console import Console

from nat_rewriter.cli.proxy_view import ProxyView, short
from nat_rewriter.model.proxies import Endpoint, Proxy, ProxyMode
from nat_rewriter.proxy.objects import end_line, end_object, status_object, worker_line, worker_object
from nat_rewriter.proxy.outcomes import ConnectionEnd, Outcome
from nat_rewriter.proxy.relay import Counts
from nat_rewriter.proxy.status import ProxyStatus, WorkerChange

PROXY = Proxy("web", ProxyMode.CONNECT, (Endpoint(IPv4Address("127.0.0.1"), 3128),), ())
MOMENT = datetime(2026, 11, 21, 19, 24, 22, tzinfo=UTC)
END = ConnectionEnd(
    0, 1, Outcome.EXHAUSTED, 0, 1, 2, 3, Endpoint(IPv4Address("10.0.0.2"), 40000),
    Endpoint(IPv4Address("203.0.113.1"), 443), None, "example.org",
)  # fmt: skip


def status(active: int, up: int) -> ProxyStatus:
    ended = [0] * len(Outcome)
    ended[Outcome.EXHAUSTED], ended[Outcome.REFUSED], ended[Outcome.FINISHED] = 7, 2, 100
    counts = Counts(accepted=10 * active, active=active, bytes_up=up, ended=ended)
    return ProxyStatus((PROXY,), {"web": counts}, workers=2, draining=1, restarts=3, reloads=1)


def drawn(width: int, height: int, lines: tuple[str, ...]) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=False)
    console.print(ProxyView(status(12, 5_000_000), status(10, 1_000_000), 2.0, lines))
    return out.getvalue().splitlines()


def test_the_view_has_rates_failures_and_events() -> None:
    lines = drawn(100, 20, ("one", "two"))
    assert lines[0] == "12 connections, 2 workers, 1 of before a reload, 3 restarts"
    assert lines[2].split() == ["web", "(connect)", "12", "of", "10000", "10", "2.0M", "0", "7", "2"]
    assert lines[3:] == ["one", "two"]


def test_the_view_fits_the_terminal() -> None:
    lines = drawn(60, 10, tuple(f"{number} " + "x" * 200 for number in range(50)))
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 60
    assert lines[-1].startswith("49 ")


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1200, "1.2k"), (12_345, "12k"), (999_600, "1.0M"), (5e15, "5000T")]
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


def test_the_end_of_a_connection() -> None:
    assert end_line(END, (PROXY,)) == (
        "web: 10.0.0.2:40000 to 203.0.113.1:443 (example.org): "
        "every port of the slices is in use towards this destination"
    )
    assert end_object(END, (PROXY,), MOMENT) == {
        "time": "2026-11-21T19:24:22.000000Z", "event": "connection", "proxy": "web", "outcome": "exhausted",
        "client": "10.0.0.2:40000", "destination": "203.0.113.1:443", "host": "example.org", "bytes": [1, 2],
        "duration_ms": 3, "message": "every port of the slices is in use towards this destination",
    }  # fmt: skip
    assert end_object(END, (), MOMENT)["proxy"] == "#0"


def test_workers_and_status() -> None:
    died = WorkerChange(1, 4242, died=True, reason="killed by SIGSEGV")
    assert worker_line(died) == "worker 1, process 4242, died (killed by SIGSEGV), its connections are lost"
    assert worker_object(died, MOMENT)["event"] == "worker-died"
    found = status_object(status(12, 5), MOMENT)
    assert found["proxies"]["web"]["ended"] == {"finished": 100, "exhausted": 7, "refused": 2}
