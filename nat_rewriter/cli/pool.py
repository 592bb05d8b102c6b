"""``natctl pool``: slices that hosts take from a pool for a time."""

from __future__ import annotations

import functools
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import click

from nat_rewriter.cli.env import Env, common_options
from nat_rewriter.errors import EXIT_DONE, EXIT_FOUND, UsageError

if TYPE_CHECKING:
    from nat_rewriter.model.pools import Block, Holding, Pool
    from nat_rewriter.pool import PoolStore

_SLICE = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<v4>[0-9.]+)):(?P<first>[0-9]{1,5})(?:-[0-9]{1,5})?")

host_option = click.option("--host", metavar="NAME", default=socket.gethostname, help="Which host; default: this one.")


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


def _with_store(command: Callable[..., int]) -> Callable[..., int]:
    """Give the command the store of the configuration as its second argument."""

    @functools.wraps(command)
    def opened(env: Env, *args: Any, **options: Any) -> int:
        from nat_rewriter.pool import open_store

        with open_store(env.policy().store) as store:
            return command(env, store, *args, **options)

    return opened


@pool.command(
    epilog="""\b
    Examples:
      natctl pool init
      natctl pool init --config fleet.toml
    """
)
@common_options(json=True)
@_with_store
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
@_with_store
def show(env: Env, store: PoolStore, name: str | None) -> int:
    """Show who has which slice, since when and for how long; on a terminal the port space of each address is drawn.

    The exit code is 3 where the terms in the store are not those of the configuration.
    """
    wanted = {each.name: each for each in env.policy().pools}
    differs = False
    for each in (_named(store, name),) if name else store.pools():
        _print_pool(env, each, store.holdings(each.name))
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
@_with_store
def acquire(env: Env, store: PoolStore, name: str, count: int, toml: bool, host: str) -> int:
    """Take slices for a host, all or none; prints everything that it holds now.

    They are the host's for the pool's ttl_s after the last renewal: natctl pool renew.
    """
    _print_held(env, _named(store, name), store.acquire(name, host_name(host), count), toml=toml)
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
@_with_store
def renew(env: Env, store: PoolStore, name: str, toml: bool, host: str) -> int:
    """Begin a full term for all that a host holds; prints it. The exit code is 3 where it holds nothing any more."""
    held = store.renew(name, host_name(host))
    _print_held(env, _named(store, name), held, toml=toml)
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
@_with_store
def release(env: Env, store: PoolStore, name: str, slices: Sequence[str], everything: bool, host: str) -> int:
    """Give slices back. They rest for the pool's hold_down_s before another host gets them.

    Nothing may use them any more: withdraw them with natctl apply --drain first.
    """
    if bool(slices) == everything:
        raise click.UsageError("name slices, or give --all")
    found = _named(store, name)
    blocks = [_block(found, each) for each in slices]
    if everything:
        blocks = [each.block for each in store.holdings(name) if each.host == host_name(host) and not each.resting]
    for start in range(0, len(blocks), 32):
        store.release(name, host_name(host), blocks[start : start + 32])
    env.note(f"{len(blocks)} released")
    return EXIT_DONE


@pool.command(
    epilog="""\b
    Examples:
      natctl pool transfer fleet 198.51.100.20:4096-5119 --to egress-4
    """
)
@click.argument("name", metavar="POOL")
@click.argument("owned", metavar="ADDRESS:PORTS")
@click.option("--to", "taker", metavar="HOST", required=True, help="Who gets it.")
@host_option
@common_options(json=True)
@_with_store
def transfer(env: Env, store: PoolStore, name: str, owned: str, taker: str, host: str) -> int:
    """Move the right to a slice from one host to another, without a rest in between.

    The flows in it do not move by this: the giver withdraws the slice first, with natctl apply --drain.
    """
    found = _named(store, name)
    moved = store.transfer(name, _block(found, owned), host_name(host), host_name(taker))
    _print_held(env, found, [moved], toml=False)
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
@_with_store
def history(env: Env, store: PoolStore, name: str, owned: str | None, last: int) -> int:
    """Tell who took, gave back and handed on what, the newest last."""
    from nat_rewriter.report.json_lines import json_line
    from nat_rewriter.report.pools import change_line, change_object

    block = _block(_named(store, name), owned) if owned else None
    for change in store.history(name, block, last):
        click.echo(json_line(change_object(name, change)) if env.json else change_line(change))
    return EXIT_DONE


def host_name(name: str) -> str:
    """Return the name of a host, if it can be one."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", name):
        raise UsageError("name host", "expected 1 to 63 letters, digits, dots, dashes or underscores", name)
    return name


def _named(store: PoolStore, name: str) -> Pool:
    from nat_rewriter.pool.store import unknown_pool

    known = {each.name: each for each in store.pools()}
    if name not in known:
        raise unknown_pool(name, known)
    return known[name]


def _block(found: Pool, text: str) -> Block:
    """Return the slice of a pool that a person names by its address and first port."""
    from nat_rewriter.model.pools import Block

    match, expected = _SLICE.fullmatch(text), "expected ADDRESS:PORTS of one, e.g. 198.51.100.20:4096-5119"
    try:
        block = Block(ip_address(match["v6"] or match["v4"]), int(match["first"]), found.slice_size) if match else None
    except ValueError:
        block = None
    if block is None or block not in found:
        raise UsageError("name slice", f"it is no slice of the pool {found.name}, {expected}", text)
    return block


def _print_held(env: Env, found: Pool, held: Sequence[Holding], *, toml: bool) -> None:
    from nat_rewriter.report.pools import slice_text

    if toml:
        click.echo("\n".join(slice_text(found.slice_of(each.block)) for each in held), nl=False)
    else:
        _print_holdings(env, found, held)


def _print_holdings(env: Env, found: Pool, held: Iterable[Holding]) -> None:
    from nat_rewriter.report.json_lines import json_line
    from nat_rewriter.report.pools import holding_object, holding_row

    if env.terminal:
        from nat_rewriter.cli.pool_view import holdings_table

        env.console().print(holdings_table(held))
        return
    for each in held:
        click.echo(json_line(holding_object(found, each)) if env.json else "\t".join(holding_row(each)))


def _print_pool(env: Env, found: Pool, held: Sequence[Holding]) -> None:
    from nat_rewriter.report.json_lines import json_line
    from nat_rewriter.report.pools import pool_state_object

    if env.json:
        click.echo(json_line(pool_state_object(found, held)))
    elif env.terminal:
        from nat_rewriter.cli.pool_view import pool_view

        env.console().print(pool_view(found, held, env.console().width))
    else:
        _print_holdings(env, found, held)
