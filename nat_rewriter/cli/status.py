"""``natctl status``: slices and their use, what the guard caught, drift, and the sysctls that matter."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from nat_rewriter.cli.env import Env, common_options
from nat_rewriter.errors import EXIT_DONE, EXIT_FOUND

if TYPE_CHECKING:
    from nat_rewriter.model.overview import Overview


@click.command(
    epilog="""\b
    Examples:
      natctl status                            slices, busiest destinations, strays, drift
      natctl status --top 30                   more destinations
      natctl status --json | jq .busiest[0]    one object, for programs
      natctl status -q || alert                by exit code alone
    """
)
@click.option("--top", default=10, show_default=True, type=click.IntRange(0), help="How many destinations to show.")
@common_options(json=True)
def status(env: Env, top: int) -> int:
    """Show slices, their use, leaks, drift and sysctls.

    A port serves each destination once, so that headroom is counted there. Exit code 3 if the live table differs from
    the configuration, or the guard caught packets from outside the slices within the last day.
    """
    from nat_rewriter.controller.overview import read_overview

    overview = read_overview(env.policy(), top)
    _print(env, overview)
    return EXIT_FOUND if overview.differences or overview.strays else EXIT_DONE


def _print(env: Env, overview: Overview) -> None:
    from nat_rewriter.report.json_lines import json_line
    from nat_rewriter.report.overview import overview_lines, overview_object

    if env.json:
        env.stdout.write(json_line(overview_object(overview, datetime.now(UTC))) + "\n")
    elif env.quiet:
        return
    elif env.terminal:
        from nat_rewriter.cli.overview_tables import overview_view

        env.console().print(overview_view(overview))
    else:
        env.stdout.writelines(f"{line}\n" for line in overview_lines(overview))
