"""``natctl pool export``: who is to get packets for which ports, for routers and load balancers before the fleet."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from nat_rewriter.cli.env import Env, common_options
from nat_rewriter.cli.pool_words import named_pool, with_store
from nat_rewriter.errors import EXIT_DONE, UsageError

if TYPE_CHECKING:
    from nat_rewriter.model.pools import Pool
    from nat_rewriter.pool import PoolStore


@click.command(
    epilog="""\b
    Examples:
      natctl pool export | jq '.slices[] | select(.host == "egress-3")'
      natctl pool export --format nft --arrival wan0 --device lan0 | nft -f -     on a router of the fleet's segment
    """
)
@click.argument("names", metavar="[POOL]...", nargs=-1)
@click.option("--format", "form", type=click.Choice(["json", "nft"]), default="json", show_default=True)
@click.option("--arrival", metavar="DEVICE", multiple=True, help="nft: where the router gets packets for the pools.")
@click.option("--device", metavar="DEVICE", help="nft: by which the router reaches the hosts.")
@common_options(json=False)
@with_store
def export(
    env: Env, store: PoolStore, names: Sequence[str], form: str, arrival: tuple[str, ...], device: str | None
) -> int:
    """Print who is to get packets for which ports of the pools: the host that has them, and where it is reached.

    As JSON, or as an nft file that replaces the table of an earlier one when it is loaded. What it says holds now: when
    slices change hands, hosts of the fleet hand over what comes to the wrong one until it is loaded anew.
    """
    pools = [named_pool(store, name) for name in names] or store.pools()
    if form == "nft":
        if not arrival or not device:
            raise click.UsageError("--format nft needs --arrival and --device")
        click.echo(_nft_text(env, store, pools, arrival, device), nl=False)
    else:
        click.echo(_json_text(store, pools))
    return EXIT_DONE


def _json_text(store: PoolStore, pools: Sequence[Pool]) -> str:
    from nat_rewriter.report.inbound import mapping_object
    from nat_rewriter.report.json_lines import json_line

    now = datetime.now(UTC)
    holdings = {each: store.holdings(each.name) for each in pools}
    return json_line(mapping_object(holdings, store.hosts.holders().peers, now))


def _nft_text(env: Env, store: PoolStore, pools: Sequence[Pool], arrival: Sequence[str], device: str) -> str:
    from nat_rewriter.model.inbound import Inbound
    from nat_rewriter.render.inbound import router_text

    inbound = Inbound(_device(device), (), tuple(map(_device, arrival)))
    return router_text(env.policy().controller.table, pools, store.hosts.holders(), inbound)


def _device(name: str) -> str:
    from nat_rewriter.config import values

    try:
        return values.interface(name)
    except values.Unexpected as error:
        raise UsageError("name device", f"expected {error}", name) from None
