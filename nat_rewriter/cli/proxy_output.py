"""What ``natctl proxy`` shows: a live view on a terminal, JSON lines in a pipe."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

import click

from nat_rewriter.cli.env import Env
from nat_rewriter.proxy.objects import end_line, end_object, status_object, worker_line, worker_object
from nat_rewriter.proxy.outcomes import ConnectionEnd
from nat_rewriter.proxy.status import ProxyStatus, WorkerChange
from nat_rewriter.proxy.supervisor import Supervisor
from nat_rewriter.report.json_lines import json_line, time_text

if TYPE_CHECKING:
    from rich.live import Live

Happened = Sequence[ConnectionEnd | WorkerChange]
_DRAW_EVERY_S = 0.5
_KEPT = 200


class Output(Protocol):
    """Where news of the proxies goes."""

    def show(self, happened: Happened) -> None:
        """Tell what happened, and now and then how things are."""

    def say(self, event: str, message: str = "") -> None:
        """Tell what was done: started, reloaded, stopping, stopped."""


@contextmanager
def output_to(env: Env, supervisor: Supervisor, interval_s: float) -> Iterator[Output]:
    """Yield the output that suits where standard output goes."""
    if not env.terminal or env.quiet:
        yield JsonOutput(env, supervisor, interval_s)
    elif os.environ.get("TERM") == "dumb":
        yield LineOutput(supervisor)
    else:
        from rich.live import Live

        with Live(console=env.console(), screen=True, auto_refresh=False) as screen:
            live = LiveOutput(supervisor, screen)
            yield live
        for line in live.last_lines:
            click.echo(line)


class JsonOutput:
    """An object a line: events as they come, counts every so often; with -q only what went wrong."""

    def __init__(self, env: Env, supervisor: Supervisor, interval_s: float) -> None:
        self._env, self._supervisor, self._interval_s = env, supervisor, interval_s
        self._next_s = time.monotonic() + interval_s

    def show(self, happened: Happened) -> None:
        """Print an object for each event, and the counts when it is time for them."""
        moment = datetime.now(UTC)
        proxies = self._supervisor.status().proxies if happened else ()
        lines = [
            json_line(worker_object(one, moment))
            if isinstance(one, WorkerChange)
            else json_line(end_object(one, proxies, moment))
            for one in happened
        ]
        if time.monotonic() >= self._next_s and not self._env.quiet:
            self._next_s += self._interval_s
            lines.append(json_line(status_object(self._supervisor.status(), moment)))
        self._print(lines)

    def say(self, event: str, message: str = "") -> None:
        """Print what was done, with the counts of that moment."""
        moment = datetime.now(UTC)
        if message:
            self._print([json_line({"time": time_text(moment), "event": event, "message": message})])
        elif not self._env.quiet:
            self._print([json_line(status_object(self._supervisor.status(), moment, event))])

    def _print(self, lines: list[str]) -> None:
        if lines:
            self._env.stdout.writelines(f"{line}\n" for line in lines)
            self._env.stdout.flush()


class LineOutput:
    """A line for each event, on a terminal that cannot do better."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def show(self, happened: Happened) -> None:
        """Print a line for each event."""
        for line in lines_of(self._supervisor, happened):
            click.echo(line)

    def say(self, event: str, message: str = "") -> None:
        """Print what was done."""
        click.echo(f"{event}: {message}" if message else event)


class LiveOutput:
    """A screen that follows the counts, with the last events below."""

    def __init__(self, supervisor: Supervisor, screen: Live) -> None:
        self._supervisor, self._screen = supervisor, screen
        self._drawn_s = 0.0
        self._last: ProxyStatus | None = None
        self.last_lines: deque[str] = deque(maxlen=_KEPT)

    def show(self, happened: Happened) -> None:
        """Take in what happened, and draw when it is time."""
        stamp = datetime.now().strftime("%H:%M:%S")
        self.last_lines.extend(f"{stamp} {line}" for line in lines_of(self._supervisor, happened))
        if time.monotonic() - self._drawn_s >= _DRAW_EVERY_S:
            self._draw()

    def say(self, event: str, message: str = "") -> None:
        """Take in what was done, and draw at once."""
        self.last_lines.append(f"{datetime.now():%H:%M:%S} {f'{event}: {message}' if message else event}")
        self._draw()

    def _draw(self) -> None:
        from nat_rewriter.cli.proxy_view import ProxyView

        before_s, self._drawn_s = self._drawn_s, time.monotonic()
        status = self._supervisor.status()
        view = ProxyView(status, self._last, self._drawn_s - before_s, tuple(self.last_lines))
        self._screen.update(view, refresh=True)
        self._last = status


def lines_of(supervisor: Supervisor, happened: Happened) -> list[str]:
    """Return a line for a person for each event."""
    proxies = supervisor.status().proxies if happened else ()
    return [worker_line(one) if isinstance(one, WorkerChange) else end_line(one, proxies) for one in happened]
