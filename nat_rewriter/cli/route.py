"""``natctl route``: packets that a tunnel sends from soft-unicast addresses, and the way back for their replies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nat_rewriter.cli.apply import wait_option
from nat_rewriter.cli.env import Env, common_options
from nat_rewriter.cli.state import state_option
from nat_rewriter.errors import EXIT_DONE, EXIT_FOUND

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nat_rewriter.model.generations import Place
    from nat_rewriter.model.routing import Step


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
    Examples:
      natctl route apply                   put in place what [route] says
      natctl route show                    what is there, and what is missing
      natctl route remove                  take it away
    """,
)
def route() -> None:
    """Policy routing and early-demux handling for forwarded packets with soft-unicast sources.

    A service behind a tunnel device sends packets from soft-unicast addresses that this host has as well. [route] of
    the configuration names the tunnel, the devices that replies arrive on, the slices, and how replies get past sockets
    of this host that have their tuple.
    """


@route.command(
    epilog="""\b
    Examples:
      natctl route apply                   as /etc/natctl/natctl.toml says
      natctl route apply -v                and say each thing that was changed
      natctl route apply --netns egress
    """
)
@wait_option
@state_option
@common_options(json=True)
def apply(env: Env, wait_s: float, state: Path | None) -> int:
    """Put rules, routes, marks, sysctls and the early-demux answer in place, or mend what is missing of them.

    There is no moment in which the local table is not looked up. A second apply changes nothing.
    """
    from nat_rewriter.controller.routing import apply_route

    policy = env.policy()
    steps = apply_route(policy, _place(state, policy.controller.table), wait_s)
    _print_steps(env, steps, "in place", "was in place")
    return EXIT_DONE


@route.command(
    epilog="""\b
    Examples:
      natctl route show                    rules, tables, marks, sysctls, counters
      natctl route show --json | jq .packets
      natctl route show -q || natctl route apply
    """
)
@state_option
@common_options(json=True)
def show(env: Env, state: Path | None) -> int:
    """Show what is in place, what is missing, and what was counted. Exit code 3 if anything is missing."""
    from nat_rewriter.controller.routing_view import read_view
    from nat_rewriter.report.json_lines import json_line
    from nat_rewriter.report.route import view_lines, view_object

    policy = env.policy()
    view = read_view(policy, _place(state, policy.controller.table))
    if env.json:
        click.echo(json_line(view_object(view)))
    elif not env.quiet:
        for line in view_lines(view):
            click.echo(line)
    return EXIT_DONE if view.state == "in place" else EXIT_FOUND


@route.command(
    epilog="""\b
    Examples:
      natctl route remove                  everything as it was before the first apply
      natctl route remove -v --netns egress
    """
)
@wait_option
@state_option
@common_options(json=True)
def remove(env: Env, wait_s: float, state: Path | None) -> int:
    """Take all of it out of the kernel, and bring back what was there before.

    A sysctl that somebody else has changed since is left as it is.
    """
    from nat_rewriter.controller.routing import remove_route

    table = env.policy().controller.table
    steps = remove_route(table, _place(state, table), wait_s)
    _print_steps(env, steps, "removed", "was not there")
    return EXIT_DONE


def _place(state: Path | None, table: str) -> Place:
    from nat_rewriter.controller.generations import place_of

    return place_of(state, table)


def _print_steps(env: Env, steps: Sequence[Step], changed: str, same: str) -> None:
    from nat_rewriter.report.json_lines import json_line
    from nat_rewriter.report.route import step_text, steps_object

    if env.json:
        click.echo(json_line(steps_object(steps)))
        return
    if env.verbosity > 0:
        for step in steps:
            click.echo(step_text(step))
    if not env.quiet:
        click.echo(f"route: {changed if steps else same}")
