"""``natctl check``: one look, and what is wrong."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from nat_rewriter.cli.env import Env, common_options
from nat_rewriter.cli.kinds import only_option, pressure_option
from nat_rewriter.errors import EXIT_DONE, EXIT_FOUND
from nat_rewriter.model.findings import Kind

if TYPE_CHECKING:
    from nat_rewriter.model.findings import Finding


@click.command(
    epilog="""\b
    Examples:
      natctl check                                     what is wrong now, and how to mend it
      natctl check --json | jq .message                one object a line, for programs
      natctl check --only port-leaked,slice-exhausted  some kinds alone; docs/findings.md has them all
      natctl check -q || alert                         by exit code: 0 nothing found, 3 findings
    """
)
@only_option
@pressure_option
@common_options(json=True)
def check(env: Env, kinds: frozenset[Kind], pressure: float) -> int:
    """Look once: conntrack, sockets and ruleset against the configuration. Exit code 3 if anything is found."""
    from nat_rewriter.controller.observation import look_once

    policy = env.policy()
    found = look_once(policy, kinds, pressure)
    moment = datetime.now(UTC)
    if env.json:
        _print_objects(env, found, moment)
    elif env.terminal:
        _print_table(env, found)
    else:
        _print_lines(env, found)
    return EXIT_FOUND if found else EXIT_DONE


def _print_objects(env: Env, found: list[Finding], moment: datetime) -> None:
    from nat_rewriter.report import finding_object, json_line

    env.stdout.writelines(f"{json_line(finding_object(finding, moment))}\n" for finding in found)


def _print_lines(env: Env, found: list[Finding]) -> None:
    from nat_rewriter.report import finding_line

    env.stdout.writelines(f"{finding_line(finding)}\n" for finding in found)


def _print_table(env: Env, found: list[Finding]) -> None:
    from nat_rewriter.cli.tables import findings_table

    if found:
        env.console().print(findings_table(found))
    elif not env.quiet:
        env.console().print("Nothing found.")
