"""``render`` and ``diff``: what the configuration means, and what it would change in the kernel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nat_rewriter.cli.env import Env, common_options
from nat_rewriter.cli.state import log_of, read_configuration, state_option
from nat_rewriter.errors import EXIT_DONE, EXIT_FOUND

if TYPE_CHECKING:
    from nat_rewriter.controller.intent import Change
    from nat_rewriter.model.changes import PolicyChange

COLOURS = {"+": "green", "-": "red", "~": "yellow"}


@click.command(
    epilog="""\b
    Examples:
      natctl render                        the ruleset of /etc/natctl/natctl.toml
      natctl render --config new.toml      of another file
      natctl render | nft -c -f -          let nft check it
    """
)
@common_options()
def render(env: Env) -> int:
    """Print the nft ruleset that the configuration means. Needs no privilege."""
    from nat_rewriter.render import ruleset_text

    click.echo(ruleset_text(env.policy()), nl=False)
    return EXIT_DONE


@click.command(
    epilog="""\b
    Examples:
      natctl diff                          the slices and rules that come (+), change (~) and go (-)
      natctl diff -v                       and each rule and element
      natctl diff --json                   the same as one object
      natctl diff -q && echo up to date    by exit code alone
    """
)
@state_option
@common_options(json=True)
def diff(env: Env, state: Path | None) -> int:
    """Show what apply would change in the kernel, and how many live flows that touches. Exit code 3 if anything.

    Slices and rules are told by name where the generation in the kernel is known; what somebody else changed in the
    table is told rule by rule and element by element.
    """
    from nat_rewriter.controller.intent import read_change
    from nat_rewriter.controller.touched import read_policy_change
    from nat_rewriter.kernel.nft import KernelNft

    configuration = read_configuration(env)
    with KernelNft() as nft:
        change = read_change(configuration.policy, nft)
    previous = log_of(state, configuration.table).current_policy()
    named = read_policy_change(change, configuration.policy, previous, count=not env.quiet)
    print_change(env, change, named)
    return EXIT_FOUND if change.transaction else EXIT_DONE


def print_change(env: Env, change: Change, named: PolicyChange) -> None:
    """Print what a change does: as JSON, or as the slices, rules and elements that go and come."""
    if env.json:
        click.echo(json.dumps(_change_object(change, named)))
    elif not env.quiet and change.transaction:
        for line in _change_lines(change, named, verbose=env.verbosity > 0):
            click.secho(line, fg=COLOURS.get(line[:1]))


def _change_lines(change: Change, named: PolicyChange, *, verbose: bool) -> Iterator[str]:
    from nat_rewriter.controller.intent import drift_lines
    from nat_rewriter.report.changes import policy_change_lines

    yield from policy_change_lines(named)
    if verbose or not named or not change.live:
        yield from drift_lines(change)


def _change_object(change: Change, named: PolicyChange) -> dict[str, object]:
    from nat_rewriter.report.changes import policy_change_object

    return {
        "table": change.wanted.table,
        "action": change.action,
        **policy_change_object(named),
        "lines": change.rule_lines() if change.action == "rebuild" else [],
        "sets": {one.set: {"added": one.added, "removed": one.removed} for one in change.sets},
    }
