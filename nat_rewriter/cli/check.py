"""``natctl check``: one look, and what is wrong."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nat_rewriter.cli.env import Env, common_options
from nat_rewriter.cli.kinds import only_option, pressure_option
from nat_rewriter.cli.mending import mender_of, mending_options
from nat_rewriter.cli.state import read_configuration
from nat_rewriter.errors import EXIT_DONE, EXIT_FOUND
from nat_rewriter.kernel.head_start import HeadStart
from nat_rewriter.model.findings import Kind

if TYPE_CHECKING:
    from nat_rewriter.model.actions import Action
    from nat_rewriter.model.findings import Finding
    from nat_rewriter.model.policy import Policy


@click.command(
    epilog="""\b
    Examples:
      natctl check                                     what is wrong now, and how to mend it
      natctl check --json | jq .message                one object a line, for programs
      natctl check --only port-leaked,slice-exhausted  some kinds alone; docs/findings.md has them all
      natctl check -q || alert                         by exit code: 0 nothing found, 3 findings
      natctl check --heal --dry-run                    and what would be done about it
    """
)
@only_option
@pressure_option
@mending_options
@common_options(json=True)
def check(
    env: Env, kinds: frozenset[Kind], pressure: float, heal: bool, abort: bool, dry_run: bool, state: Path | None
) -> int:
    """Look once: conntrack, sockets and ruleset against the configuration.

    Exit code 3 if anything is found, also where --heal or --abort did something about it. Each action is told after the
    findings.
    """
    configuration = read_configuration(env)
    mender = mender_of(lambda: configuration, heal=heal, abort=abort, dry_run=dry_run, state=state)
    if mender is None:
        found, actions = _look(configuration.policy, kinds, pressure), []
    else:
        with mender:
            found = _look(configuration.policy, kinds, pressure)
            actions = mender.mend(found) + mender.finish()
    if env.json:
        _print_objects(env, found, actions)
    elif env.terminal:
        _print_table(env, found, actions)
    else:
        _print_lines(env, found, actions)
    return EXIT_FOUND if found else EXIT_DONE


def _look(policy: Policy, kinds: frozenset[Kind], pressure: float) -> list[Finding]:
    """Ask the kernel before the rest of the program is imported: both take their time, and can do so at once."""
    from nat_rewriter.controller.gathering import Gathering

    gathering = Gathering(policy, kinds, click.get_current_context().find_object(HeadStart))
    from nat_rewriter.controller.observation import look_once

    return look_once(policy, kinds, pressure, gathering)


def _print_objects(env: Env, found: list[Finding], actions: list[Action]) -> None:
    from nat_rewriter.report import action_object, finding_object, json_line

    moment = datetime.now(UTC)
    env.stdout.writelines(f"{json_line(finding_object(finding, moment))}\n" for finding in found)
    env.stdout.writelines(f"{json_line(action_object(action, moment))}\n" for action in actions)


def _print_lines(env: Env, found: list[Finding], actions: list[Action]) -> None:
    from nat_rewriter.report import action_line, finding_line

    env.stdout.writelines(f"{finding_line(finding)}\n" for finding in found)
    env.stdout.writelines(f"{action_line(action)}\n" for action in actions)


def _print_table(env: Env, found: list[Finding], actions: list[Action]) -> None:
    from nat_rewriter.cli.tables import action_text, findings_table

    console = env.console()
    if found:
        console.print(findings_table(found))
    elif not env.quiet:
        console.print("Nothing found.")
    for action in actions:
        console.print(action_text(action))
