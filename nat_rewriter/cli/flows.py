"""``natctl flows``: the flow table, filtered."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nat_rewriter.cli.env import DEFAULT_CONFIG, Env, common_options
from nat_rewriter.errors import EXIT_DONE, UsageError
from nat_rewriter.model.flows import TCP_STATES, Flow, Origin
from nat_rewriter.model.tuples import PROTOCOL_NAMES

if TYPE_CHECKING:
    from nat_rewriter.detect.selection import Selection
    from nat_rewriter.model.slices import Slice

Placed = tuple[Flow, str | None, Origin | None]


def _read_network(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> IPv4Network | IPv6Network | None:
    """Return an address, or a network as address/length."""
    try:
        return None if value is None else ip_network(value, strict=False)
    except ValueError:
        raise click.BadParameter(f"{value!r}: expected an address or address/length", context, parameter) from None


def _read_protocol(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Return a protocol by the kernel's name, or by number as text."""
    name = None if value is None else value.lower()
    if name is None or name in PROTOCOL_NAMES.values() or (name.isdecimal() and int(name) < 256):
        return name
    expected = ", ".join(PROTOCOL_NAMES.values())
    raise click.BadParameter(f"{value!r}: expected one of {expected}, or a number", context, parameter)


_STATES = click.Choice([*TCP_STATES, "UNREPLIED", "ASSURED"], case_sensitive=False)


@click.command(
    epilog="""\b
    Examples:
      natctl flows --slice ams-1                        what uses a slice
      natctl flows --address 203.0.113.0/24 --port 443  by any end of a flow
      natctl flows --origin local --nat                 local flows that were rewritten
      natctl flows --state UNREPLIED --protocol udp     what never got an answer
      natctl flows --json | jq -r .original.src         one object a line, for programs
    """
)
@click.option("--slice", "slice_name", metavar="NAME", help="Flows of this slice.")
@click.option(
    "--address",
    callback=_read_network,
    metavar="ADDRESS[/LENGTH]",
    help="Flows with this address, or one of this network, at any end.",
)
@click.option("--port", type=click.IntRange(0, 65535), metavar="PORT", help="Flows with this port or echo id.")
@click.option("--protocol", callback=_read_protocol, metavar="NAME", help="Flows of this protocol.")
@click.option("--state", type=_STATES, metavar="STATE", help="A TCP state, UNREPLIED or ASSURED.")
@click.option("--origin", type=click.Choice([each.value for each in Origin]), help="Where flows come from.")
@click.option("--nat", is_flag=True, help="Flows that were rewritten.")
@common_options(json=True)
def flows(env: Env, slice_name: str | None, origin: str | None, **filters: Any) -> int:
    """List the flow table. Without a configuration no slice and no origin is told."""
    from nat_rewriter.detect.selection import Selection

    slices = _known_slices(env, needed=bool(slice_name or origin))
    if slice_name and slice_name not in {each.name for each in slices}:
        raise UsageError("list flows", f"no slice of that name, expected one of {_names(slices)}", slice_name)
    selection = Selection(slice=slice_name, origin=Origin(origin) if origin else None, **filters)
    _print(env, _select(slices, selection))
    return EXIT_DONE


def _known_slices(env: Env, *, needed: bool) -> tuple[Slice, ...]:
    """Return the slices of the configuration; none where the default one does not exist and nothing needs it."""
    if needed or env.config_path != DEFAULT_CONFIG or Path(DEFAULT_CONFIG).exists():
        return env.policy().slices
    env.note(f"natctl: {DEFAULT_CONFIG} does not exist: flows are shown without slice and origin")
    return ()


def _names(slices: tuple[Slice, ...]) -> str:
    return ", ".join(each.name for each in slices)


def _select(slices: tuple[Slice, ...], selection: Selection) -> Iterator[Placed]:
    from nat_rewriter.detect.ownership import SliceIndex
    from nat_rewriter.detect.placement import place_flows
    from nat_rewriter.kernel.conntrack import dump
    from nat_rewriter.model.flows import flow_from_record

    table = dump()
    placement = place_flows(table, SliceIndex(slices))
    for row in selection.rows(table, placement):
        yield flow_from_record(table[row]), placement.slice_of(row), placement.origin_of(row)


def _print(env: Env, found: Iterator[Placed]) -> None:
    from nat_rewriter.report import flow_line, flow_object, flow_row, json_line

    if env.json:
        env.stdout.writelines(f"{json_line(flow_object(*placed))}\n" for placed in found)
    elif env.terminal:
        from nat_rewriter.cli.tables import print_flows

        print_flows(env.console(), [flow_row(*placed) for placed in found])
    else:
        env.stdout.writelines(f"{flow_line(*placed)}\n" for placed in found)
