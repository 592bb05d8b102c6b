"""``log``: the generations that were applied, and what each of them was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nat_rewriter.cli.env import Env, common_options
from nat_rewriter.cli.state import find_log, state_option, table_option
from nat_rewriter.errors import EXIT_DONE

if TYPE_CHECKING:
    from nat_rewriter.controller.generations import GenerationLog
    from nat_rewriter.model.generations import Generation

COLUMNS = ("generation", "time", "action", "outcome", "user", "pid", "command")


@click.command(
    epilog="""\b
    Examples:
      natctl log                           the generations of this namespace's table, newest last
      natctl log -n 5                      the last five of them
      natctl log 7                         who, when, why, and the configuration
      natctl log 7 --ruleset               the ruleset as it was sent, for nft -f
      natctl log 7 --configuration > old.toml
    """
)
@click.argument("number", metavar="[N]", required=False, type=int)
@click.option("-n", "--last", metavar="COUNT", type=click.IntRange(min=1), help="List this many only.")
@click.option("--configuration", "part", flag_value="configuration", help="Print the configuration of N alone.")
@click.option("--ruleset", "part", flag_value="ruleset", help="Print the ruleset of N alone.")
@table_option
@state_option
@common_options(json=True)
def log(
    env: Env, number: int | None, last: int | None, part: str | None, table: str | None, state: Path | None
) -> int:  # fmt: skip
    """List the generations that were applied, or show one.

    The last 50 are kept for each table and network namespace. Times are in UTC.
    """
    found = find_log(env, state, table)
    if number is None and part is not None:
        raise click.UsageError(f"--{part} needs the number of a generation")
    if number is None:
        _print_all(env, found.list_generations()[-(last or 0) :])
    else:
        _print_one(env, found, number, part)
    return EXIT_DONE


def _print_all(env: Env, generations: list[Generation]) -> None:
    from nat_rewriter.controller.generations import generation_object

    if env.json:
        for generation in generations:
            click.echo(json.dumps(generation_object(generation)))
    elif env.terminal:
        _print_table(env, generations)
    else:
        for generation in generations:
            click.echo("\t".join(_row(generation)))


def _print_table(env: Env, generations: list[Generation]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(*COLUMNS, box=None, pad_edge=False, header_style="bold")
    for generation in generations:
        table.add_row(*map(Text, _row(generation)))
    env.console().print(table)


def _print_one(env: Env, log: GenerationLog, number: int, part: str | None) -> None:
    from nat_rewriter.controller.generations import generation_object

    generation = log.get(number)
    configuration = log.configuration_text(number).decode(errors="replace")
    if part == "ruleset":
        click.echo(log.ruleset_text(number), nl=False)
    elif part == "configuration":
        click.echo(configuration, nl=False)
    elif env.json:
        texts = {"configuration": configuration, "ruleset": log.ruleset_text(number)}
        click.echo(json.dumps(generation_object(generation) | texts))
    else:
        click.echo("\n".join(f"{name}: {value}" for name, value in _fields(generation)))
        click.echo(f"\n{configuration}" if configuration else "", nl=False)


def _row(generation: Generation) -> tuple[str, ...]:
    back = f" to {generation.rolled_back_to}" if generation.rolled_back_to else ""
    return (
        str(generation.number),
        generation.time.strftime("%Y-%m-%d %H:%M:%S"),
        f"{generation.action}{', back' + back if back else ''}",
        generation.outcome.value,
        generation.actor.user,
        str(generation.actor.pid),
        generation.actor.command,
    )


def _fields(generation: Generation) -> list[tuple[str, str]]:
    _, time, action, outcome, user, pid, command = _row(generation)
    fields = [
        ("generation", f"{generation.number} of table inet {generation.table} in {generation.netns}"),
        ("time", f"{time} UTC"),
        ("action", action),
        ("outcome", outcome),
        ("reason", generation.reason or ""),
        ("user", f"{user} (uid {generation.actor.uid})"),
        ("process", f"{pid}: {command}"),
        ("natctl", generation.natctl),
        ("configuration", generation.source),
    ]
    return [(name, value) for name, value in fields if value]
