"""What commands that apply have in common: the state directory, the configuration as text, and warnings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from nat_rewriter.cli.env import Env
    from nat_rewriter.controller.generations import GenerationLog
    from nat_rewriter.model.generations import Configuration


def _read_table(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Return the name of a table, such as the configuration takes."""
    from nat_rewriter.config.values import table_name

    try:
        return None if value is None else table_name(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: expected {error}", context, parameter) from None


state_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--state", "state", metavar="DIR", type=click.Path(path_type=Path),
    help="Keep generations here. [default: $NATCTL_STATE_DIR; /var/lib/natctl; without root $XDG_STATE_HOME/natctl]",
)  # fmt: skip
table_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--table", metavar="NAME", callback=_read_table, help="The table, where the configuration does not tell."
)


def read_configuration(env: Env) -> Configuration:
    """Read and check the configuration of the command; raise ConfigError with every problem."""
    return checked_configuration(*read_text(env))


def read_text(env: Env) -> tuple[bytes, str]:
    """Return the configuration of the command as it is written, and what it is called."""
    from nat_rewriter.config.source import read_bytes

    if env.config_path == "-":
        return sys.stdin.buffer.read(), "<stdin>"
    return read_bytes(Path(env.config_path)), env.config_path


def checked_configuration(text: bytes, source: str) -> Configuration:
    """Return what a configuration says; raise ConfigError with every problem."""
    from nat_rewriter.config import read_policy
    from nat_rewriter.model.generations import Configuration

    return Configuration(text, source, read_policy(text, source))


def log_of(state: Path | None, table: str) -> GenerationLog:
    """Return the generations of a table in the network namespace of the command."""
    from nat_rewriter.controller.generations import GenerationLog, place_of

    return GenerationLog(place_of(state, table))


def known_log(state: Path | None) -> GenerationLog | None:
    """Return the generations of the one table that has any; None where no table, or several, or nobody can tell."""
    from nat_rewriter.controller.generations import list_tables
    from nat_rewriter.errors import StateError

    try:
        known = list_tables(state)
    except StateError:
        return None
    return log_of(state, known[0]) if len(known) == 1 else None


def find_log(env: Env, state: Path | None, table: str | None) -> GenerationLog:
    """Return the generations of the one table that has any, else of the table that is named or configured.

    So they can be read, and gone back to, with a configuration that is broken.
    """
    if table is None and (log := known_log(state)):
        return log
    return log_of(state, table or env.policy().controller.table)


def warn(text: str) -> None:
    """Say on standard error what went wrong beside the work itself."""
    click.echo(f"natctl: warning: {text}", err=True)
