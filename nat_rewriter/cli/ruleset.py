"""``render`` and ``diff``: what the configuration means, and what it would change in the kernel."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nat_rewriter.cli.env import Env, common_options
from nat_rewriter.cli.state import log_of, read_configuration, state_option
from nat_rewriter.errors import EXIT_DONE, EXIT_FOUND

if TYPE_CHECKING:
    from nat_rewriter.controller.generations import GenerationLog
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

    Slices and rules are told by name where the generation in the kernel is known; what somebody else has changed in the
    table since, and apply takes back, is told rule by rule and element by element.
    """
    from nat_rewriter.controller.intent import read_change, read_foreign_edits
    from nat_rewriter.controller.touched import read_policy_change
    from nat_rewriter.kernel.nft import KernelNft

    configuration, foreign = read_configuration(env), list[str]()
    log = log_of(state, configuration.table)
    with KernelNft() as nft:
        change = read_change(configuration.policy, nft)
        previous = log.current_policy()
        if change.transaction and previous and _is_between_changes(log):
            foreign = read_foreign_edits(change.live, previous, nft)
    named = read_policy_change(change, configuration.policy, previous, count=not env.quiet)
    print_change(env, change, named, foreign)
    return EXIT_FOUND if change.transaction else EXIT_DONE


def _is_between_changes(log: GenerationLog) -> bool:
    """Tell whether the table is to be as the current generation made it: no drain, and no kill, has come after it."""
    from nat_rewriter.model.generations import Outcome

    return log.list_generations()[-1].outcome not in (Outcome.DRAINING, Outcome.UNFINISHED)


def print_change(env: Env, change: Change, named: PolicyChange, foreign: Sequence[str] = ()) -> None:
    """Print what a change does: as JSON, or as the slices, rules and elements that go and come.

    ``foreign``: how the live table differs from what natctl made of it, which ends with the change.
    """
    if env.json:
        click.echo(json.dumps(_change_object(change, named, foreign)))
    elif not env.quiet and change.transaction:
        for line in _change_lines(change, named, foreign, verbose=env.verbosity > 0):
            click.secho(line, fg=COLOURS.get(line[:1]))


def _change_lines(change: Change, named: PolicyChange, foreign: Sequence[str], *, verbose: bool) -> Iterator[str]:
    from nat_rewriter.controller.intent import drift_lines
    from nat_rewriter.report.changes import policy_change_lines

    yield from policy_change_lines(named)
    if verbose or not named or not change.live:
        yield from drift_lines(change)
    elif foreign:
        yield "and takes back what somebody else has changed in the table:"
        yield from foreign


def _change_object(change: Change, named: PolicyChange, foreign: Sequence[str]) -> dict[str, object]:
    from nat_rewriter.report.changes import policy_change_object

    return {
        "table": change.wanted.table,
        "action": change.action,
        **policy_change_object(named),
        "lines": change.rule_lines() if change.action == "rebuild" else [],
        "foreign": list(foreign),
        "sets": {one.set: {"added": one.added, "removed": one.removed} for one in change.sets},
    }
