"""Words that the ``natctl pool`` commands share: hosts, pools and slices by name, and what is held, printed."""

from __future__ import annotations

import functools
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import click

from nat_rewriter.cli.env import Env
from nat_rewriter.errors import UsageError

if TYPE_CHECKING:
    from nat_rewriter.model.pools import Block, Holding, Pool
    from nat_rewriter.pool import PoolStore

_SLICE = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<v4>[0-9.]+)):(?P<first>[0-9]{1,5})(?:-[0-9]{1,5})?")

host_option = click.option("--host", metavar="NAME", default=socket.gethostname, help="Which host; default: this one.")


def with_store(command: Callable[..., int]) -> Callable[..., int]:
    """Give the command the store of the configuration as its second argument."""

    @functools.wraps(command)
    def opened(env: Env, *args: Any, **options: Any) -> int:
        from nat_rewriter.pool import open_store

        with open_store(env.policy().store) as store:
            return command(env, store, *args, **options)

    return opened


def host_name(name: str) -> str:
    """Return the name of a host, if it can be one."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", name):
        raise UsageError("name host", "expected 1 to 63 letters, digits, dots, dashes or underscores", name)
    return name


def named_pool(store: PoolStore, name: str) -> Pool:
    """Return the pool of that name in the store. Raises NatctlError."""
    from nat_rewriter.pool.store import unknown_pool

    known = {each.name: each for each in store.pools()}
    if name not in known:
        raise unknown_pool(name, known)
    return known[name]


def read_block(found: Pool, text: str) -> Block:
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


def print_held(env: Env, found: Pool, held: Sequence[Holding], *, toml: bool) -> None:
    """Print what a host holds, as it is; or, as a configuration has it, what of that it may use."""
    from nat_rewriter.report.pools import slice_text

    if toml:
        usable = [found.slice_of(each.block) for each in held if not each.quarantine_s]
        click.echo("\n".join(map(slice_text, usable)), nl=False)
    else:
        print_holdings(env, found, held)
    note_quarantines(env, held)


def note_quarantines(env: Env, held: Iterable[Holding]) -> None:
    """Say of slices that are held and not to be used yet why that is."""
    if count := sum(bool(each.quarantine_s) for each in held):
        reason = "the last holder has not given it back, and may be using it until its quarantine ends"
        env.note(f"{count} held and not to be used yet: {reason}")


def print_holdings(env: Env, found: Pool, held: Iterable[Holding]) -> None:
    """Print who has what: as a table, as lines or as JSON."""
    from nat_rewriter.report.json_lines import json_line
    from nat_rewriter.report.pools import holding_object, holding_row

    if env.terminal:
        from nat_rewriter.cli.pool_view import holdings_table

        env.console().print(holdings_table(held))
        return
    for each in held:
        click.echo(json_line(holding_object(found, each)) if env.json else "\t".join(holding_row(each)))
