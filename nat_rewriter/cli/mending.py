"""The options that let check and watch act on what they find."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nat_rewriter.cli.state import log_of, state_option, warn
from nat_rewriter.errors import UsageError

if TYPE_CHECKING:
    from nat_rewriter.controller.mender import Mender
    from nat_rewriter.model.generations import Configuration

_OPTIONS = (
    click.option(
        "--heal",
        is_flag=True,
        help="Delete stuck entries, insert the missing entries of sockets, and apply a drifted ruleset again.",
    ),
    click.option(
        "--abort", is_flag=True, help="End sockets whose port leaked, so that their applications get an error at once."
    ),
    click.option("--dry-run", is_flag=True, help="Only say what --heal and --abort would do."),
    state_option,
)


def mending_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --heal, --abort, --dry-run and --state."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def mender_of(
    in_force: Callable[[], Configuration], *, heal: bool, abort: bool, dry_run: bool, state: Path | None
) -> Mender | None:
    """Return who acts on findings by the configuration in force then, None where nobody shall. Raises UsageError."""
    if not (heal or abort):
        if dry_run:
            raise UsageError("read options", "--dry-run says what --heal or --abort would do: give one of them")
        return None
    from nat_rewriter.controller.measures import restore_ruleset
    from nat_rewriter.controller.mender import Mender, Powers

    table = in_force().table
    log = log_of(state, table)
    powers = Powers(heal, abort, dry_run)
    return Mender(table, powers, lambda: restore_ruleset(in_force(), log, warn, dry_run))
