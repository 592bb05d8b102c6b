"""``render``, ``diff``, ``apply`` and ``remove``: from the configuration to the kernel."""

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
    _print_change(env, change)
    return EXIT_FOUND if change.transaction else EXIT_DONE


@click.command(
    epilog="""\b
    Examples:
      natctl apply                         make the kernel match /etc/natctl/natctl.toml
      natctl apply --dry-run               print the nft commands instead, after the kernel checked them
      natctl apply --netns egress -v       in another namespace, and say what was changed
    """
)
@click.option("--dry-run", is_flag=True, help="Print the transaction instead of running it.")
@common_options(json=True)
def apply(env: Env, dry_run: bool) -> int:
    """Make the kernel match the configuration, in one atomic transaction."""
    from nat_rewriter.controller import intent
    from nat_rewriter.kernel.nft import KernelNft
    from nat_rewriter.render.transaction import transaction_text

    policy = env.policy()
    with KernelNft() as nft:
        if dry_run:
            change = intent.read_change(policy, nft)
            nft.check(change.transaction)
            if change.transaction:
                click.echo(transaction_text(change.transaction))
            return EXIT_DONE
        change = intent.apply(policy, nft)
    if env.json or env.verbosity > 0:
        _print_change(env, change)
    elif not env.quiet:
        click.echo(_summary(change))
    return EXIT_DONE


@click.command(
    epilog="""\b
    Examples:
      natctl remove                        packets pass as if natctl had never been here
      natctl remove --netns egress
    """
)
@common_options()
def remove(env: Env) -> int:
    """Take all of natctl's own state out of the kernel, and nothing else.

    Flows that were rewritten keep their addresses until they end: they live in conntrack.
    """
    from nat_rewriter.controller import intent
    from nat_rewriter.kernel.nft import KernelNft

    table = env.policy().controller.table
    with KernelNft() as nft:
        removed = intent.remove(table, nft)
    if not env.quiet:
        click.echo(f"table inet {table}: removed" if removed else f"table inet {table}: was not there")
    return EXIT_DONE


def _print_change(env: Env, change: Change) -> None:
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


def _summary(change: Change) -> str:
    words = {"none": "up to date", "create": "created", "rebuild": "rebuilt", "update": "updated"}
    added = sum(len(one.added) for one in change.sets)
    removed = sum(len(one.removed) for one in change.sets)
    counts = f": {added} elements added, {removed} removed" if added or removed else ""
    return f"table inet {change.wanted.table}: {words[change.action]}{counts}"
