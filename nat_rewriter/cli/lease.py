"""``natctl lease``: tuples of slices, held or connected, for whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from nat_rewriter.cli import numbers
from nat_rewriter.cli.env import Env, common_options
from nat_rewriter.errors import EXIT_DONE, EXIT_FAILED, UsageError
from nat_rewriter.lease.strategies import AUTO, PORT_RANGE, STRATEGIES, list_lines

if TYPE_CHECKING:
    from nat_rewriter.lease import Lease, Lessor

_EXAMPLES = """\b
Examples:
  natctl lease acquire --slice ams-1 --to 203.0.113.1:443    hold a tuple until it is interrupted
  natctl lease list                                          who holds what
  natctl lease run --slice ams-1 --to example.com:443 -- socat - FD:3
"""
_STRATEGY_HELP = "\b\nStrategies:\n" + "\n".join(click.wrap_text(line, 78, "  ", "      ") for line in list_lines())


@click.group(epilog=f"{_EXAMPLES}\n{_STRATEGY_HELP}")
def lease() -> None:
    """Hold tuples of a slice towards a destination, or run a program with a connected socket."""


def _wanted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which tuple is wanted."""
    choice = click.Choice([AUTO, *STRATEGIES])
    for option in (
        click.option("--strategy", type=choice, default=AUTO, show_default=True, help="How the tuple is held."),
        click.option("--protocol", type=click.Choice(["tcp", "udp"]), default="tcp", show_default=True),
        click.option("--to", "to", metavar="HOST:PORT", required=True, help="The destination."),
        click.option("--slice", "slice_name", metavar="NAME", required=True, help="The slice."),
    ):
        function = option(function)
    return function


@lease.command(
    epilog="""\b
    Examples:
      natctl lease acquire --slice ams-1 --to 203.0.113.1:443                until it is interrupted
      natctl lease acquire --slice ams-1 --to 203.0.113.1:443 --for 60       for a minute
      natctl lease acquire --slice ams-1 --to example.com:443 --detach       by a process of its own
      natctl lease acquire --slice ams-1 --to 203.0.113.1:53 --protocol udp --port 9003 --strategy reservation
    """
)
@_wanted
@click.option("--port", type=click.IntRange(1, 65535), metavar="PORT", help="This port, and no other.")
@click.option("--for", "seconds", type=numbers.seconds(min_open=True), metavar="SECONDS", help="Release it then.")
@click.option("--detach", is_flag=True, help="Hold it in a process of its own; natctl lease release ends it.")
@common_options(json=True)
def acquire(
    env: Env, slice_name: str, to: str, protocol: str, strategy: str, port: int | None, seconds: float | None,
    detach: bool,
) -> int:  # fmt: skip
    """Hold a tuple, and print it. A program may use a reservation by binding its port.

    Exit code 1 where the tuple is lost while it is held. Nothing of a lease outlives its holder for more than 15
    seconds, however that ends.
    """
    from nat_rewriter.lease.destinations import parse_destination
    from nat_rewriter.lease.holder import hold, hold_detached

    if strategy == PORT_RANGE.name:
        raise UsageError("acquire lease", f"{strategy} holds nothing before it connects: use natctl lease run")
    policy, destination = env.policy(), parse_destination(to)

    def acquired(lessor: Lessor) -> Lease:
        return lessor.acquire(slice_name, destination, protocol=protocol, strategy=strategy, port=port)

    if detach:
        _print(env, [hold_detached(policy, acquired, seconds)])
        return EXIT_DONE
    kept = hold(policy, acquired, seconds, lambda record: _print(env, [record]))
    return EXIT_DONE if kept else EXIT_FAILED


@lease.command(
    name="list",
    epilog="""\b
    Examples:
      natctl lease list
      natctl lease list --config natctl.toml     those of its slices
      natctl lease list --json | jq -r 'select(.slice == "ams-1").id'
    """,
)
@click.option("--config", "only_of", metavar="PATH", help="Leases of the slices of this configuration; default: all.")
@common_options(json=True, config=False)
def list_(env: Env, only_of: str | None) -> int:
    """List the leases that commands hold in this network namespace; those of programs are the programs' own."""
    from nat_rewriter.lease.records import list_records

    records = list_records()
    if only_of is not None:
        slices = {owned.name for owned in replace(env, config_path=only_of).policy().slices}
        records = [record for record in records if record["slice"] in slices]
    _print(env, records)
    return EXIT_DONE


@lease.command(
    epilog="""\b
    Examples:
      natctl lease release 5f0c2a91
      natctl lease release --all
    """
)
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All that natctl lease list shows.")
@common_options(config=False)
def release(env: Env, ids: tuple[str, ...], every: bool) -> int:
    """Have holders release their leases, and return when they have."""
    from nat_rewriter.lease.records import list_records
    from nat_rewriter.lease.records import release as release_record

    if every == bool(ids):
        raise UsageError("release lease", "expected ids of leases, or --all")
    for identity in ids or [record["id"] for record in list_records()]:
        release_record(identity)
        env.note(f"natctl: released {identity}")
    return EXIT_DONE


@lease.command(
    context_settings={"allow_interspersed_args": False},
    epilog="""\b
    The program finds the socket as descriptor 3 (NATCTL_LEASE_FD), and the tuple in LEASE_PROTOCOL, LEASE_SOURCE,
    LEASE_SOURCE_PORT, LEASE_DESTINATION, LEASE_DESTINATION_PORT, LEASE_SLICE and LEASE_STRATEGY.

    \b
    Examples:
      natctl lease run --slice ams-1 --to 203.0.113.1:80 -- sh -c 'echo GET / >&3; cat <&3'
      natctl lease run --slice ams-1 --to example.com:443 --strategy fast-open -- socat - FD:3
    """,
)
@_wanted
@click.option(
    "--timeout", "timeout_s", type=numbers.seconds(min_open=True), default=10.0, show_default=True,
    metavar="SECONDS", help="How long to wait for the destination.",
)  # fmt: skip
@click.argument("command", nargs=-1, required=True)
@common_options()
def run(
    env: Env, slice_name: str, to: str, protocol: str, strategy: str, timeout_s: float, command: tuple[str, ...]
) -> int:
    """Connect from a slice and run COMMAND with the socket; return its exit code."""
    from nat_rewriter.lease import Lessor
    from nat_rewriter.lease.destinations import parse_destination
    from nat_rewriter.lease.handing import run_with
    from nat_rewriter.lease.holder import record_of
    from nat_rewriter.lease.records import recorded

    policy, destination = env.policy(), parse_destination(to)
    with (
        Lessor(policy) as lessor,
        lessor.connect(slice_name, destination, protocol=protocol, strategy=strategy, timeout_s=timeout_s) as connected,
        recorded(record_of(connected)),
    ):
        return run_with(connected, command)


def _print(env: Env, records: Sequence[dict[str, Any]]) -> None:
    from nat_rewriter.report.json_lines import json_line

    for record in records:
        line = json_line(record) if env.json else _line(record)
        env.stdout.write(f"{line}\n")
    env.stdout.flush()


def _line(record: dict[str, Any]) -> str:
    return (
        f"{record['id']}  {record['protocol']} {record['source']} -> {record['destination']}  {record['slice']}  "
        f"{record['strategy']}  {record['state']}  pid {record['pid']}  {record['since']}"
    )
