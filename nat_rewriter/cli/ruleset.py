"""``render`` and ``diff``: what the configuration means, and what it would change in the kernel."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from nat_rewriter.cli.env import Env, common_options
from nat_rewriter.errors import EXIT_DONE, EXIT_FOUND

if TYPE_CHECKING:
    from nat_rewriter.controller.intent import Change


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
      natctl diff                          lines with - go, lines with + come
      natctl diff --json                   the same as one object
      natctl diff -q && echo up to date    by exit code alone
    """
)
@common_options(json=True)
def diff(env: Env) -> int:
    """Show what apply would change in the kernel. Exit code 3 if anything."""
    from nat_rewriter.controller.intent import read_change
    from nat_rewriter.kernel.nft import KernelNft

    policy = env.policy()
    with KernelNft() as nft:
        change = read_change(policy, nft)
    print_change(env, change)
    return EXIT_FOUND if change.transaction else EXIT_DONE


def print_change(env: Env, change: Change) -> None:
    """Print what a change does: as JSON, or as the lines that go and come."""
    from nat_rewriter.controller.intent import drift_lines

    if env.json:
        click.echo(json.dumps(_change_object(change)))
    elif not env.quiet:
        for line in drift_lines(change):
            click.secho(line, fg={"+": "green", "-": "red"}.get(line[:1]))


def _change_object(change: Change) -> dict[str, object]:
    return {
        "table": change.wanted.table,
        "action": change.action,
        "rules": change.rule_lines() if change.action == "rebuild" else [],
        "sets": {one.set: {"added": one.added, "removed": one.removed} for one in change.sets},
    }
