"""``natctl watch``: findings as they open and close."""

from __future__ import annotations

import functools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nat_rewriter.cli.env import Env, common_options
from nat_rewriter.cli.kinds import only_option, pressure_option
from nat_rewriter.cli.mending import mender_of, mending_options
from nat_rewriter.cli.metrics import Endpoint, metrics_option, served
from nat_rewriter.cli.numbers import FiniteRange
from nat_rewriter.cli.recording import Recording, recording_options
from nat_rewriter.cli.service import Service, stop_signals
from nat_rewriter.cli.state import log_of, warn
from nat_rewriter.errors import EXIT_DONE
from nat_rewriter.model.findings import Kind

if TYPE_CHECKING:
    from nat_rewriter.controller.applier import Applier
    from nat_rewriter.controller.mender import Mender
    from nat_rewriter.controller.watcher import Watcher
    from nat_rewriter.detect.tracker import Change
    from nat_rewriter.model.actions import Action
    from nat_rewriter.model.generations import Configuration
    from nat_rewriter.model.policy import Policy
    from nat_rewriter.model.watching import WatchStatus
    from nat_rewriter.report.metrics import WatchCollector

Show = Callable[["Watcher", "list[Change]", "list[Action]"], None]
_STEP_S = 0.25
_DRAW_EVERY_S = 0.2  # however many events come
_ACTIONS_TOLD = 200  # when the screen is gone


@click.command(
    epilog="""\b
    Examples:
      natctl watch                              a live view
      natctl watch --json >> findings.jsonl     each finding when it opens and when it closes
      natctl watch --only port-leaked | alert   in a pipe it is JSON too
      natctl watch --metrics 127.0.0.1:9464     for Prometheus
      natctl watch --duration 60                for a minute
      natctl watch --heal --abort --dry-run     and what could be done about it
      natctl watch --apply                      and has what it watches by in force
      natctl watch --record PATH --keep 30d     for natctl history
    """
)
@click.option("--duration", type=FiniteRange(0, min_open=True), metavar="SECONDS", help="Stop after that time.")
@metrics_option
@only_option
@pressure_option
@click.option(
    "--apply", "applies", is_flag=True, help="Apply the configuration first, and again whenever SIGHUP comes."
)
@mending_options
@recording_options
@common_options(json=True)
def watch(
    env: Env, duration: float | None, metrics: Endpoint | None, kinds: frozenset[Kind], pressure: float, applies: bool,
    heal: bool, abort: bool, dry_run: bool, state: Path | None, recording: Recording | None,
) -> int:  # fmt: skip
    """The same as check, live, from conntrack events.

    On a terminal a live view, otherwise JSON, one object a line. SIGINT, SIGTERM and --duration end it with exit
    code 0, whatever was found. Without a terminal, SIGHUP has it read its configuration again; one that is not sound is
    told, and the one before stays.
    """
    from nat_rewriter.controller.watcher import Watcher

    if applies and dry_run:
        raise click.UsageError("--apply and --dry-run do not go together")
    service = Service(env, _status, functools.partial(_applier, state) if applies else None)
    mender = mender_of(lambda: service.configuration, heal=heal, abort=abort, dry_run=dry_run, state=state)
    live = env.terminal and os.environ.get("TERM") != "dumb"
    with ExitStack() as stack:
        stopped = stack.enter_context(stop_signals())
        stack.enter_context(mender or nullcontext())
        policy, books = service.configuration.policy, stack.enter_context(ExitStack())
        recorder = books.enter_context(recording.begin(policy)) if recording else None
        watcher = stack.enter_context(
            Watcher(policy, kinds, pressure=pressure, count_use=live or bool(metrics), recorder=recorder)
        )
        if metrics:
            stack.enter_context(served(_collector(watcher, mender), metrics))
        show = stack.enter_context(_live(env)) if live else _lines(env)
        steps = service.attend(_until(stopped, duration), lambda new: _follow(watcher, new.policy, recording, books))
        _run(watcher, mender, show, steps)
    return EXIT_DONE


def _applier(state: Path | None, configuration: Configuration) -> Applier:
    from nat_rewriter.controller.applier import Applier

    return Applier(log_of(state, configuration.table), warn)


def _status(configuration: Configuration) -> str:
    slices = len(configuration.policy.slices)
    return f"watching {slices} slice{'' if slices == 1 else 's'} of {configuration.source}"


def _follow(watcher: Watcher, policy: Policy, recording: Recording | None, books: ExitStack) -> None:
    """Watch by another policy; one writer at a time keeps a history, so the old one ends before the next begins."""
    books.close()
    watcher.follow(policy, books.enter_context(recording.begin(policy)) if recording else None)


def _until(stopped: Callable[[], bool], duration: float | None) -> Iterator[float]:
    """Yield how long the next step may take, until a signal came or the time is over."""
    end = time.monotonic() + duration if duration else float("inf")
    while not stopped() and (left := end - time.monotonic()) > 0:
        yield min(_STEP_S, left)


def _run(watcher: Watcher, mender: Mender | None, show: Show, steps: Iterator[float]) -> None:
    looks = 0
    for timeout_s in steps:
        changes = watcher.step(timeout_s)
        to_mend = watcher.take_to_mend()
        actions = mender.mend(to_mend) if mender else []
        if mender and looks != watcher.looks:
            mender.keep(watcher.status.findings)
            looks = watcher.looks
        show(watcher, changes, actions)
    if mender:
        show(watcher, [], mender.finish())


def _lines(env: Env) -> Show:
    """Print each change and action as a line at once: JSON, or words on a terminal that cannot do better."""
    from nat_rewriter.report import action_line, action_object, finding_line, finding_object, json_line

    def change_line(change: Change, moment: datetime) -> str:
        finding, opened = change
        state = "open" if opened else "closed"
        return finding_line(finding, state) if env.terminal else json_line(finding_object(finding, moment, state))

    def show(watcher: Watcher, changes: list[Change], actions: list[Action]) -> None:
        moment = datetime.now(UTC)
        lines = [change_line(change, moment) for change in changes]
        lines += [action_line(one) if env.terminal else json_line(action_object(one, moment)) for one in actions]
        if lines:
            env.stdout.writelines(f"{line}\n" for line in lines)
            env.stdout.flush()

    return show


@contextmanager
def _live(env: Env) -> Iterator[Show]:
    """Show a screen that follows the watcher's status, until the block ends; then tell again what was done."""
    from rich.live import Live

    from nat_rewriter.cli.live import ACTIONS_SHOWN, LiveView
    from nat_rewriter.cli.tables import timed_action_text

    console = env.console()
    last_actions: deque[tuple[datetime, Action]] = deque(maxlen=_ACTIONS_TOLD)
    with Live(console=console, screen=True, auto_refresh=False) as screen:
        drawn_at = 0.0

        def show(watcher: Watcher, changes: list[Change], actions: list[Action]) -> None:
            nonlocal drawn_at
            last_actions.extend((datetime.now(UTC), action) for action in actions)
            if time.monotonic() - drawn_at >= _DRAW_EVERY_S:
                screen.update(LiveView(watcher.status, list(last_actions)[-ACTIONS_SHOWN:]), refresh=True)
                drawn_at = time.monotonic()

        yield show
    for moment, action in last_actions:
        console.print(timed_action_text(moment, action), soft_wrap=True)


def _collector(watcher: Watcher, mender: Mender | None) -> WatchCollector:
    """Return what tells the metrics of a watch."""
    from nat_rewriter.controller.conntrack_counts import read_conntrack_counts
    from nat_rewriter.report.metrics import WatchCollector

    def read_status() -> WatchStatus:
        return replace(watcher.status, actions=dict(mender.counts) if mender else {})

    return WatchCollector(read_status, read_conntrack_counts)
