"""``natctl pool``: slices that hosts take from a pool for a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from nat_rewriter.cli.env import Env, common_options
from nat_rewriter.cli.pool_export import export
from nat_rewriter.cli.pool_moves import accept, transfer
from nat_rewriter.cli.pool_words import (
    host_name,
    host_option,
    named_pool,
    note_quarantines,
    print_held,
    print_holdings,
    read_block,
    with_store,
)
from nat_rewriter.cli.state import warn
from nat_rewriter.errors import EXIT_DONE, EXIT_FOUND, UsageError

if TYPE_CHECKING:
    from nat_rewriter.model.pools import Holding, Pool
    from nat_rewriter.pool import PoolStore


@click.group(
    epilog="""\b
    Examples:
      natctl pool init                     enter the pools of the configuration into the store
      natctl pool show                     who has what, drawn
      natctl pool acquire fleet            take a slice
      natctl pool history fleet            who had what
    """
)
def pool() -> None:
    """Slices of shared addresses that hosts take from a pool, for a time, and give back.

    The store is a file of this host, or etcd for a fleet: [store] in the configuration.
    """


pool.add_command(transfer)
pool.add_command(accept)
pool.add_command(export)


@pool.command(
    epilog="""\b
    Examples:
      natctl pool init
      natctl pool init --config fleet.toml
    """
)
@common_options(json=True)
@with_store
def init(env: Env, store: PoolStore) -> int:
    """Enter the pools of the configuration into the store, or their new terms.

    Where slices are held, new terms that would take them away are refused, and nothing changes.
    """
    pools = list(env.policy().pools)
    if not pools:
        raise UsageError("enter pools", "there is no [[pool]] in the configuration", env.config_path)
    for each in pools:
        words = "entered" if store.define(each) else "there already"
        env.note(f"{each.name}: {words}")
    for fault in store.known_faults():
        warn(fault)
    return EXIT_DONE


@pool.command(
    epilog="""\b
    Examples:
      natctl pool show
      natctl pool show fleet --json | jq '.holdings[] | select(.host == "egress-3")'
    """
)
@click.argument("name", metavar="[POOL]", required=False)
@common_options(json=True)
@with_store
def show(env: Env, store: PoolStore, name: str | None) -> int:
    """Show who has which slice, since when and for how long; on a terminal the port space of each address is drawn.

    The exit code is 3 where the terms in the store are not those of the configuration.
    """
    wanted = {each.name: each for each in env.policy().pools}
    differs = False
    for each in (named_pool(store, name),) if name else store.pools():
        held = store.holdings(each.name)
        _print_pool(env, each, held)
        note_quarantines(env, held)
        if wanted.get(each.name, each) != each:
            env.note(f"{each.name}: the configuration has other terms than the store: natctl pool init enters them")
            differs = True
    return EXIT_FOUND if differs else EXIT_DONE


@pool.command(
    epilog="""\b
    Examples:
      natctl pool acquire fleet
      natctl pool acquire fleet --count 2 --toml >> slices.toml
    """
)
@click.argument("name", metavar="POOL")
@click.option("--count", type=click.IntRange(1, 32), default=1, show_default=True, help="How many more slices.")
@click.option("--toml", is_flag=True, help="Print all that the host holds as [[slice]] sections.")
@host_option
@common_options(json=True)
@with_store
def acquire(env: Env, store: PoolStore, name: str, count: int, toml: bool, host: str) -> int:
    """Take slices for a host, all or none; prints everything that it holds now.

    They are the host's for the pool's ttl_s after the last renewal: natctl pool renew.
    """
    print_held(env, named_pool(store, name), store.acquire(name, host_name(host), count), toml=toml)
    return EXIT_DONE


@pool.command(
    epilog="""\b
    Examples:
      natctl pool renew fleet
      natctl pool renew fleet --host egress-3 --json
    """
)
@click.argument("name", metavar="POOL")
@click.option("--toml", is_flag=True, help="Print all that the host holds as [[slice]] sections.")
@host_option
@common_options(json=True)
@with_store
def renew(env: Env, store: PoolStore, name: str, toml: bool, host: str) -> int:
    """Begin a full term for all that a host holds; prints it. The exit code is 3 where it holds nothing any more."""
    held = store.renew(name, host_name(host))
    print_held(env, named_pool(store, name), held, toml=toml)
    return EXIT_DONE if held else EXIT_FOUND


@pool.command(
    epilog="""\b
    Examples:
      natctl pool release fleet 198.51.100.20:4096-5119
      natctl pool release fleet --all
    """
)
@click.argument("name", metavar="POOL")
@click.argument("slices", metavar="[ADDRESS:PORTS]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that the host holds.")
@host_option
@common_options()
@with_store
def release(env: Env, store: PoolStore, name: str, slices: Sequence[str], everything: bool, host: str) -> int:
    """Give slices back. They rest for the pool's hold_down_s before another host gets them.

    Nothing may use them any more: withdraw them with natctl apply --drain first.
    """
    if bool(slices) == everything:
        raise click.UsageError("name slices, or give --all")
    found = named_pool(store, name)
    blocks = [read_block(found, each) for each in slices]
    if everything:
        blocks = [each.block for each in store.holdings(name) if each.host == host_name(host) and not each.resting]
    for start in range(0, len(blocks), 32):
        store.release(name, host_name(host), blocks[start : start + 32])
    env.note(f"{len(blocks)} released")
    return EXIT_DONE


@pool.command(
    epilog="""\b
    Examples:
      natctl pool history fleet
      natctl pool history fleet 198.51.100.20:4096 --json
    """
)
@click.argument("name", metavar="POOL")
@click.argument("owned", metavar="[ADDRESS:PORTS]", required=False)
@click.option("-n", "--last", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="At most so many.")
@common_options(json=True)
@with_store
def history(env: Env, store: PoolStore, name: str, owned: str | None, last: int) -> int:
    """Tell who took, gave back and handed on what, the newest last."""
    from nat_rewriter.report.json_lines import json_line
    from nat_rewriter.report.pools import change_line, change_object

    block = read_block(named_pool(store, name), owned) if owned else None
    for change in store.history(name, block, last):
        click.echo(json_line(change_object(name, change)) if env.json else change_line(change))
    return EXIT_DONE


def _print_pool(env: Env, found: Pool, held: Sequence[Holding]) -> None:
    from nat_rewriter.report.json_lines import json_line
    from nat_rewriter.report.pools import pool_state_object

    if env.json:
        click.echo(json_line(pool_state_object(found, held)))
    elif env.terminal:
        from nat_rewriter.cli.pool_view import pool_view

        env.console().print(pool_view(found, held, env.console().width))
    else:
        print_holdings(env, found, held)
