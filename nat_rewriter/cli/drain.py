"""``apply --drain``: how a withdrawal goes on, what is left of it, and what was ended."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from nat_rewriter.cli.confirm import CLEAR_LINE
from nat_rewriter.cli.env import Env
from nat_rewriter.cli.state import warn

if TYPE_CHECKING:
    from nat_rewriter.controller.generations import GenerationLog
    from nat_rewriter.controller.withdrawal import Progress, Withdrawn
    from nat_rewriter.model.flows import Flow
    from nat_rewriter.model.generations import Configuration

LISTED = 20  # flows that are listed without -v
NOTE_EVERY_S = 10.0  # without a terminal


def apply_drained(env: Env, configuration: Configuration, log: GenerationLog, wait_s: float, seconds: float) -> None:
    """Apply a configuration; what it withdraws is given time, and what is left then is listed and ended."""
    from nat_rewriter.controller.withdrawal import withdraw

    show = _show_on_terminal if sys.stderr.isatty() and not env.quiet else _show_in_lines(env)
    done = withdraw(configuration, log, warn, seconds, show, wait_s)
    _print(env, done)


def _show_on_terminal(progress: Progress) -> None:
    text = f"{', '.join(progress.names)}: {_flows(progress.flows)} left, ended in {progress.seconds_left:.0f} s"
    over = not progress.flows or not progress.seconds_left
    click.echo(CLEAR_LINE + ("" if over else text), nl=False, err=True)


def _show_in_lines(env: Env) -> Callable[[Progress], None]:
    told = 0.0

    def show(progress: Progress) -> None:
        nonlocal told
        if progress.flows and progress.seconds_left and time.monotonic() - told >= NOTE_EVERY_S:
            told = time.monotonic()
            left = f"{_flows(progress.flows)} left, ended in {progress.seconds_left:.0f} s"
            env.note(f"{', '.join(progress.names)}: {left}")

    return show


def _print(env: Env, done: Withdrawn) -> None:
    from nat_rewriter.cli.apply import summary
    from nat_rewriter.model.flows import flow_from_record

    ended = [flow_from_record(record) for record in done.ended]
    if env.json:
        click.echo(json.dumps(_object(done, ended)))
    elif not env.quiet:
        click.echo(summary(done.change))
        _print_ended(done, ended, None if env.verbosity > 0 else LISTED)


def _print_ended(done: Withdrawn, ended: list[Flow], at_most: int | None) -> None:
    from nat_rewriter.report import flow_line

    if not done.slices:
        click.echo("no slice was withdrawn")
        return
    click.echo(
        f"withdrawn: {', '.join(done.names)}: {_flows(len(ended))} had to be ended, {done.sockets} of sockets here"
    )
    for flow in ended[:at_most]:
        click.echo(f"  {flow_line(flow)}")
    if at_most is not None and len(ended) > at_most:
        click.echo(f"  and {len(ended) - at_most} more: -v lists all")


def _object(done: Withdrawn, ended: list[Flow]) -> dict[str, object]:
    from nat_rewriter.report import flow_object

    return {
        "table": done.change.wanted.table,
        "action": done.change.action,
        "withdrawn": list(done.names),
        "ended": [flow_object(flow) for flow in ended],
        "sockets": done.sockets,
    }


def _flows(count: int) -> str:
    return f"{count} flow{'' if count == 1 else 's'}"
