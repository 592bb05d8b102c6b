"""``natctl lab``: namespaces to try natctl in, by hand or by scenario. Without root it works in its own namespaces."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from nat_rewriter.errors import EXIT_DONE, NatctlError, UsageError

if TYPE_CHECKING:
    from netns_lab.lab import Lab
    from netns_lab.narrator import Narrator
    from netns_lab.scenario import FleetScenario, Scenario

HOSTS = ("client", "egress", "server", "upstream")
DEFAULT_NAME = "lab"


def _complete_scenario(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    from netns_lab.scenario import list_scenarios

    return [each.name for each in list_scenarios() if each.name.startswith(incomplete)]


@click.group(
    epilog="""\b
    Examples:
      natctl lab demo                      the whole story, on a real kernel, in ten seconds
      natctl lab up                        a lab to try things in
      natctl lab shell egress              be on its egress host
      natctl lab down --all                take away all labs, and what a crash left
    """
)
def lab() -> None:
    """Try natctl in network namespaces of its own: client, egress host, upstream and server."""


@lab.command(
    epilog="""\b
    Examples:
      natctl lab up
      natctl lab up --name b --clients 50
      natctl lab up --name c --slice 198.51.100.10:9000-9009,9100-9109
    """
)
@click.option("--name", default=DEFAULT_NAME, show_default=True, help="Name of the lab.")
@click.option(
    "--slice", "slices", metavar="ADDRESS:PORTS", multiple=True, help="What the egress host owns; repeatable."
)
@click.option("--clients", default=1, show_default=True, help="Addresses of the client, from 10.0.0.2 on.")
def up(name: str, slices: tuple[str, ...], clients: int) -> int:
    """Make a lab that stays until natctl lab down."""
    from netns_lab import standing
    from netns_lab.lab import Lab
    from netns_lab.settings import DEFAULT_SLICES

    made = Lab(slices=slices or DEFAULT_SLICES, clients=clients, name=name)
    standing.up(made)
    option = "" if name == DEFAULT_NAME else f" --name {name}"
    click.echo(f"lab {name} is up: {', '.join(HOSTS)}")
    click.echo(f"  natctl lab shell egress{option}    be on its egress host")
    click.echo(f"  natctl lab down {name}    take it away")
    return EXIT_DONE


@lab.command(
    epilog="""\b
    Examples:
      natctl lab shell                     a shell on the egress host
      natctl lab shell client -- ip route
      natctl lab shell egress -- conntrack -E
    """
)
@click.argument("words", metavar="[HOST] [-- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
@click.option("--name", default=DEFAULT_NAME, show_default=True, help="Name of the lab.")
def shell(words: tuple[str, ...], name: str) -> None:
    """Run a shell, or a COMMAND, on a HOST of a lab that is up: client, egress (the default), server or upstream."""
    from nat_rewriter.kernel.netns import enter
    from netns_lab import standing
    from netns_lab.host import TOOL_PATH
    from netns_lab.namespaces import namespace_name

    host, command = (words[0], words[1:]) if words and words[0] in HOSTS else ("egress", words)
    standing.join(name)
    enter(namespace_name(name, host))
    command = command or (os.environ.get("SHELL", "/bin/sh"),)
    # Debian's prompt shows debian_chroot; and natctl itself is to be found from inside.
    path = os.pathsep.join((os.path.dirname(sys.executable), TOOL_PATH))
    environment = os.environ | {"debian_chroot": f"{name}:{host}", "PATH": path}
    sys.stdout.flush()
    try:
        os.execvpe(command[0], command, environment)
    except OSError as error:
        hosts = "" if words[:1] != command[:1] else f", and no host either: {', '.join(HOSTS)}"
        raise NatctlError("run in lab", f"{(error.strerror or 'cannot be run').lower()}{hosts}", command[0]) from None


@lab.command(
    epilog="""\b
    Examples:
      natctl lab run --list                names, and what each shows
      natctl lab run collision-tcp-off     in a lab of its own, which is taken away
      natctl lab run exhaustion --in lab   in a lab that is up; look around afterwards
      natctl lab run --every --json        all of them, one observation a line
    """
)
@click.argument("names", metavar="[SCENARIO]...", nargs=-1, shell_complete=_complete_scenario)
@click.option("--list", "listing", is_flag=True, help="List the scenarios.")
@click.option("--every", is_flag=True, help="Run all scenarios.")
@click.option("--in", "standing_lab", metavar="NAME", help="Use a lab that is up, and leave everything in place.")
@click.option("--json", "as_json", is_flag=True, help="Print observations as JSON, one a line.")
def run(names: tuple[str, ...], listing: bool, every: bool, standing_lab: str | None, as_json: bool) -> int:
    """Run scenarios, each of which says what it expects, what it saw, and fails if they differ."""
    from netns_lab.scenario import get_scenario, list_scenarios

    if listing:
        _print_groups(list_scenarios())
        return EXIT_DONE
    chosen = list_scenarios() if every else [get_scenario(name) for name in names]
    if not chosen:
        raise UsageError("run scenario", "expected a name, --every or --list")
    narrator = _narrator(as_json)
    for each in chosen:
        _play(each, narrator, standing_lab)
    return EXIT_DONE


@lab.command(
    epilog="""\b
    Examples:
      natctl lab demo
      natctl lab demo | less
    """
)
@click.option("--json", "as_json", is_flag=True, help="Print observations as JSON, one a line.")
def demo(as_json: bool) -> int:
    """Show the silent rewrite of a port, natctl naming it, and natctl preventing it, step by step."""
    from netns_lab.demo import DEMO

    _play(DEMO, _narrator(as_json), None)
    return EXIT_DONE


@lab.command(
    epilog="""\b
    Examples:
      natctl lab down                      the lab called lab
      natctl lab down b
      natctl lab down --all                all that nobody is using, and leftovers of a crash
      natctl lab down --all --force        those in use as well
    """
)
@click.argument("name", default=DEFAULT_NAME)
@click.option("--all", "everything", is_flag=True, help="All labs that no process is in, or lives for.")
@click.option("--force", is_flag=True, help="With --all: those too.")
def down(name: str, everything: bool, force: bool) -> int:
    """Take a lab away, with the processes in it."""
    from netns_lab import standing

    for each in standing.list_removable(force=force) if everything else [name]:
        standing.down(each)
        click.echo(f"lab {each} is down")
    return EXIT_DONE


@lab.command(
    "list",
    epilog="""\b
    Examples:
      natctl lab list
      natctl lab list --json               one object a line
    """,
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def list_(as_json: bool) -> int:
    """List the labs there are, and who keeps each."""
    from netns_lab import standing

    for each in standing.list_standing():
        owner = {"pid": each.owner.pid, "alive": each.owner.alive()} if each.owner else {}
        click.echo(json.dumps({"name": each.name, **owner}) if as_json else f"{each.name:<24} {_whose(each.owner)}")
    return EXIT_DONE


def _whose(owner: Any) -> str:
    if owner is None:
        return "up"
    return f"kept by process {owner.pid}" if owner.alive() else f"left behind by process {owner.pid}"


def _print_groups(scenarios: list[Scenario | FleetScenario]) -> None:
    for group, members in itertools.groupby(scenarios, key=lambda each: each.group):
        click.secho(group, bold=True)
        for each in members:
            click.echo(f"  {each.name:<22} {each.summary}")


def _narrator(as_json: bool) -> Narrator:
    from netns_lab.narrator import JsonNarrator, PlainNarrator

    if as_json:
        return JsonNarrator(sys.stdout)
    if not sys.stdout.isatty():
        return PlainNarrator(sys.stdout)
    from rich.console import Console

    from nat_rewriter.cli.narrator import TerminalNarrator

    return TerminalNarrator(Console())


def _play(scenario: Scenario | FleetScenario, narrator: Narrator, standing_lab: str | None) -> None:
    """Play a scenario where labs can be made, or in one that is up; end tidily when told to terminate."""
    from netns_lab import standing
    from netns_lab.enter import enter_if_needed
    from netns_lab.lab import Lab

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    found: Lab | None = None
    if standing_lab is None:
        enter_if_needed()
    else:
        standing.join(standing_lab)
        found = Lab.attached(standing_lab)
    scenario.run(narrator, found)


def _terminate(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)
