"""``apply`` and ``remove``: what is changed in the kernel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nat_rewriter.cli.env import Env, common_options
from nat_rewriter.cli.state import find_log, log_of, read_configuration, state_option, table_option, warn
from nat_rewriter.errors import EXIT_DONE, UsageError

if TYPE_CHECKING:
    from nat_rewriter.controller.apply import Applied
    from nat_rewriter.controller.generations import GenerationLog
    from nat_rewriter.controller.intent import Change
    from nat_rewriter.model.generations import Configuration

PREVIOUS = "previous"

wait_option = click.option(
    "--wait", "wait_s", metavar="SECONDS", type=click.FloatRange(min=0), default=0.0,
    help="How long to wait for another natctl that is at work on the table. [default: not at all]",
)  # fmt: skip


@click.command(
    epilog="""\b
    Examples:
      natctl apply                         make the kernel match /etc/natctl/natctl.toml
      natctl apply --dry-run               print the nft commands instead, after the kernel checked them
      natctl apply --netns egress -v       in another namespace, and say what was changed
      natctl apply --rollback              go back to the generation before this one
      natctl apply --rollback 7            or to generation 7 of natctl log
    """
)
@click.option("--dry-run", is_flag=True, help="Print the transaction instead of running it.")
@click.option(
    "--rollback", "rollback", metavar="[N]", is_flag=False, flag_value=PREVIOUS,
    help="Apply an earlier generation in place of the configuration. [default: the one before this]",
)  # fmt: skip
@wait_option
@table_option
@state_option
@common_options(json=True)
def apply(
    env: Env, dry_run: bool, rollback: str | None, wait_s: float, table: str | None, state: Path | None
) -> int:  # fmt: skip
    """Make the kernel match the configuration, in one atomic transaction.

    Every generation is kept: natctl log lists them.
    """
    from nat_rewriter.controller.apply import apply_configuration

    if rollback is None:
        configuration = read_configuration(env)
        log = log_of(state, configuration.table)
    else:
        log = find_log(env, state, table)
        configuration = earlier_configuration(log, rollback)
    if dry_run:
        return _print_transaction(configuration)
    _print_applied(env, apply_configuration(configuration, log, warn, wait_s))
    return EXIT_DONE


@click.command(
    epilog="""\b
    Examples:
      natctl remove                        packets pass as if natctl had never been here
      natctl remove --netns egress
    """
)
@wait_option
@state_option
@common_options()
def remove(env: Env, wait_s: float, state: Path | None) -> int:
    """Take all of natctl's own state out of the kernel, and nothing else.

    Flows that were rewritten keep their addresses until they end: they live in conntrack.
    """
    from nat_rewriter.controller.apply import remove_table

    table = env.policy().controller.table
    removed = remove_table(log_of(state, table), warn, wait_s)
    if not env.quiet:
        click.echo(f"table inet {table}: removed" if removed else f"table inet {table}: was not there")
    return EXIT_DONE


def earlier_configuration(log: GenerationLog, wanted: str) -> Configuration:
    """Return the configuration of a generation given by its number, or of the previous one."""
    if wanted == PREVIOUS:
        return log.configuration(log.rollback_target().number)
    if not wanted.isdecimal():
        raise UsageError("roll back", "expected the number of a generation, see natctl log", wanted)
    return log.configuration(int(wanted))


def _print_transaction(configuration: Configuration) -> int:
    from nat_rewriter.controller.intent import read_change
    from nat_rewriter.kernel.nft import KernelNft
    from nat_rewriter.render.transaction import transaction_text

    with KernelNft() as nft:
        change = read_change(configuration.policy, nft)
        nft.check(change.transaction)
    if change.transaction:
        click.echo(transaction_text(change.transaction))
    return EXIT_DONE


def _print_applied(env: Env, applied: Applied) -> None:
    from nat_rewriter.cli.ruleset import print_change

    if env.json or env.verbosity > 0:
        print_change(env, applied.change)
    elif not env.quiet:
        click.echo(_summary(applied.change))


def _summary(change: Change) -> str:
    words = {"none": "up to date", "create": "created", "rebuild": "rebuilt", "update": "updated"}
    added = sum(len(one.added) for one in change.sets)
    removed = sum(len(one.removed) for one in change.sets)
    counts = f": {added} elements added, {removed} removed" if added or removed else ""
    return f"table inet {change.wanted.table}: {words[change.action]}{counts}"
