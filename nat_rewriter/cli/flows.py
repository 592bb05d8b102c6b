"""``natctl flows``: the flow table, filtered."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nat_rewriter.cli.env import DEFAULT_CONFIG, Env, common_options
from nat_rewriter.errors import EXIT_DONE, UnsupportedFeature, UsageError
from nat_rewriter.model.flow_views import Ranked
from nat_rewriter.model.flows import TCP_STATES, Origin, Present
from nat_rewriter.model.tuples import PROTOCOL_NAMES

if TYPE_CHECKING:
    from nat_rewriter.detect.observation import Rows
    from nat_rewriter.detect.placement import Placement
    from nat_rewriter.detect.selection import Selection
    from nat_rewriter.model.slices import Slice

_AT_A_TIME = 8192
# More than anybody reads; a table has to know all its rows before it can print one.
_MOST_IN_A_TABLE = 2000


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


def _read_age(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Return the time of the epoch, in nanoseconds, that was that long ago."""
    if value is None:
        return None
    from nat_rewriter.history.moments import read_age_ns

    return time.time_ns() - read_age_ns(value)


_STATES = click.Choice([*TCP_STATES, "UNREPLIED", "ASSURED"], case_sensitive=False)


@click.command(
    epilog="""\b
    Examples:
      natctl flows --slice ams-1                        what uses a slice
      natctl flows --address 203.0.113.0/24 --port 443  by any end of a flow
      natctl flows --origin local --nat                 local flows that were rewritten
      natctl flows --state UNREPLIED --protocol udp     what never got an answer
      natctl flows --older-than 1d --slice ams-1        what has held its port for long
      natctl flows --top destinations --limit 20        where most flows go; or clients, or slices
      natctl flows --heatmap ams-1                      which ports of a slice are in use where
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
@click.option(
    "--older-than", "began_before_ns", callback=_read_age, metavar="AGE", help="Flows that began before, like 5m."
)
@click.option(
    "--younger-than", "began_after_ns", callback=_read_age, metavar="AGE", help="Flows that began since, like 10s."
)
@click.option(
    "--top", type=click.Choice([each.value for each in Ranked]), help="Count flows by these, and list the first ones."
)
@click.option("--heatmap", metavar="SLICE", help="Draw which ports of a slice are in use towards which destinations.")
@click.option(
    "--limit", default=10, show_default=True, type=click.IntRange(1), help="How many lines --top and --heatmap have."
)
@common_options(json=True)
def flows(
    env: Env, slice_name: str | None, origin: str | None, top: str | None, heatmap: str | None, limit: int,
    **filters: Any,
) -> int:  # fmt: skip
    """List the flow table. Without a configuration no slice and no origin is told."""
    from nat_rewriter.detect.selection import Selection

    if top and heatmap:
        raise UsageError("list flows", "--top and --heatmap are two views: give one of them")
    slices = _known_slices(env, needed=bool(slice_name or origin or heatmap or top == Ranked.SLICES.value))
    for name in (slice_name, heatmap):
        if name and name not in {each.name for each in slices}:
            raise UsageError("list flows", f"no slice of that name, expected one of {_names(slices)}", name)
    selection = Selection(slice=slice_name, origin=Origin(origin) if origin else None, **filters)
    found = _select(slices, selection)
    if top:
        _print_top(env, found, Ranked(top), limit)
    elif heatmap:
        _print_heat(env, found, heatmap, limit)
    else:
        _print(env, found)
    return EXIT_DONE


def _known_slices(env: Env, *, needed: bool) -> tuple[Slice, ...]:
    """Return the slices of the configuration; none where the default one does not exist and nothing needs it."""
    if needed or env.config_path != DEFAULT_CONFIG or Path(DEFAULT_CONFIG).exists():
        return env.policy().slices
    env.note(f"natctl: {DEFAULT_CONFIG} does not exist: flows are shown without slice and origin")
    return ()


def _names(slices: tuple[Slice, ...]) -> str:
    return ", ".join(each.name for each in slices)


@dataclass(frozen=True, slots=True)
class _Found:
    """A flow table, where each flow belongs, and which of them are asked for."""

    table: Rows
    placement: Placement
    rows: Rows

    def parts(self) -> Iterator[tuple[Rows, list[str | None], list[Origin | None]]]:
        """Yield flows, slices and origins, so many at a time that their texts fit in memory."""
        for start in range(0, len(self.rows), _AT_A_TIME):
            rows = self.rows[start : start + _AT_A_TIME]
            yield self.table[rows], self.placement.names_of(rows), self.placement.origins_of(rows)


def _select(slices: tuple[Slice, ...], selection: Selection) -> _Found:
    from nat_rewriter.detect.ownership import SliceIndex
    from nat_rewriter.detect.placement import place_flows
    from nat_rewriter.kernel.conntrack import dump

    table = dump()
    if selection.asks_for_age and len(table) and not (table["present"] & Present.TIMESTAMP).any():
        raise UnsupportedFeature("age of flows", "net.netfilter.nf_conntrack_timestamp = 1", "entries without a start")
    placement = place_flows(table, SliceIndex(slices))
    return _Found(table, placement, selection.rows(table, placement))


def _print(env: Env, found: _Found) -> None:
    from nat_rewriter.report.flow_text import flow_json_lines, flow_word_lines

    if env.terminal and len(found.rows) <= _MOST_IN_A_TABLE:
        _print_table(env, found)
        return
    write = flow_json_lines if env.json else flow_word_lines
    for part in found.parts():
        env.stdout.write("".join(write(*part)))


def _print_table(env: Env, found: _Found) -> None:
    from nat_rewriter.cli.tables import print_flows
    from nat_rewriter.model.flows import flow_from_record
    from nat_rewriter.report import flow_row

    rows = [
        flow_row(flow_from_record(record), name, origin)
        for part in found.parts()
        for record, name, origin in zip(*part, strict=True)
    ]
    print_flows(env.console(), rows)


def _print_top(env: Env, found: _Found, by: Ranked, limit: int) -> None:
    from nat_rewriter.cli.flow_views import print_ranks
    from nat_rewriter.detect.ranking import rank_flows

    print_ranks(env, rank_flows(found.table, found.rows, found.placement, by, limit), by, len(found.rows))


def _print_heat(env: Env, found: _Found, slice_name: str, limit: int) -> None:
    from nat_rewriter.cli.flow_views import cells_for, print_heat
    from nat_rewriter.detect import Observation
    from nat_rewriter.detect.heat import heat_map

    observation = Observation(found.placement.index, flows=found.table[found.rows])
    number = [each.name for each in observation.slices].index(slice_name)
    print_heat(env, heat_map(observation, number, cells_for(env), limit))
