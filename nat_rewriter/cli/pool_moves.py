"""``natctl pool transfer`` and ``accept``: slices that go to another host, with the flows in them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

import click

from nat_rewriter.cli.env import Env, common_options
from nat_rewriter.cli.numbers import FiniteRange
from nat_rewriter.cli.pool_words import host_name, host_option, named_pool, print_held, read_block, with_store
from nat_rewriter.errors import EXIT_DONE, EXIT_FOUND, NatctlError, UsageError

if TYPE_CHECKING:
    from nat_rewriter.model.moves import Move
    from nat_rewriter.model.pools import Block, Pool
    from nat_rewriter.model.slices import Slice
    from nat_rewriter.pool import PoolStore

_LOOK_S = 0.02


@click.command(
    epilog="""\b
    Examples:
      natctl pool transfer fleet 198.51.100.20:4096-5119 --to egress-4
      natctl pool transfer fleet 198.51.100.20:4096 --host egress-2 --to egress-4 --json
      natctl pool transfer fleet 198.51.100.20:4096 --to egress-4 --no-flows
    """
)
@click.argument("name", metavar="POOL")
@click.argument("owned", metavar="ADDRESS:PORTS")
@click.option("--to", "taker", metavar="HOST", required=True, help="Who gets it.")
@click.option("--no-flows", is_flag=True, help="Move the right alone: for hosts without an agent.")
@click.option(
    "--wait", "wait_s", type=FiniteRange(1, 3600), default=10, show_default=True, metavar="SECONDS",
    help="How long the agents have to answer before the move is taken back.",
)  # fmt: skip
@host_option
@common_options(json=True)
@with_store
def transfer(
    env: Env, store: PoolStore, name: str, owned: str, taker: str, no_flows: bool, wait_s: float, host: str
) -> int:
    """Move a slice to another host with the NAT flows in it; the agents of both hosts see to it.

    Flows of sockets cannot go along: they are ended, and told. Send the clients to the taker once this is done: their
    packets are dropped where they come from until then, and none is reset. The exit code is 3 where a flow could not
    be moved. With --no-flows nothing is asked of the hosts: the giver has to withdraw the slice before, with natctl
    apply --drain.
    """
    found = named_pool(store, name)
    block, giver, taker = read_block(found, owned), host_name(host), host_name(taker)
    if no_flows:
        print_held(env, found, [store.transfer(name, block, giver, taker)], toml=False)
        return EXIT_DONE
    began = time.monotonic()
    done = _moved(store, _announced(store, found, block, giver, taker), wait_s)
    _print_move(env, found, done, time.monotonic() - began)
    return EXIT_FOUND if done.count.left_out or done.count.clashed else EXIT_DONE


@click.command(
    epilog="""\b
    Examples:
      natctl flows --slice ams-1 --json | ssh egress-4 natctl pool accept
      natctl pool accept --slice ams-1 < flows.json
    """
)
@click.option("--slice", "slice_name", metavar="NAME", help="Take flows of this slice only; others are refused.")
@common_options(json=True)
def accept(env: Env, slice_name: str | None) -> int:
    """Make the conntrack entries of flows that another host lists, read from standard input: natctl flows --json.

    For slices that are moved by hand: before this host uses the slice, and after the other has stopped. All flows have
    to be rewritten into slices of the configuration, or none is taken. Flows of sockets are left out, and told. The
    exit code is 3 where a flow here has the port of one.
    """
    from nat_rewriter.controller.moved import refuse_strangers
    from nat_rewriter.kernel.moved_flows import insert_flows
    from nat_rewriter.model.flows import Origin
    from nat_rewriter.report.listed_flows import read_listing

    slices = _slices(env, slice_name)
    listed = read_listing(_input(env))
    flows = [each.flow for each in listed if each.origin is not Origin.LOCAL]
    refuse_strangers(flows, slices)
    clashed = insert_flows(flows)
    counts = {"taken": len(flows) - len(clashed), "sockets": len(listed) - len(flows), "clashed": len(clashed)}
    _print_counts(env, counts, [str(each.original) for each in clashed])
    return EXIT_FOUND if clashed else EXIT_DONE


def _announced(store: PoolStore, found: Pool, block: Block, giver: str, taker: str) -> Move:
    from nat_rewriter.pool.store import not_held, refuse_same_host

    refuse_same_host(giver, taker)
    if not any(each.block == block and each.host == giver and not each.resting for each in store.holdings(found.name)):
        raise not_held("transfer", giver, [block])
    return store.moves.announce(found, block, giver, taker)


def _moved(store: PoolStore, move: Move, wait_s: float) -> Move:
    """Return the move when it is done. Raises NatctlError where it is refused, or taken back as nobody answers."""
    from nat_rewriter.model.moves import Stage

    deadline = time.monotonic() + wait_s
    now: Move | None = move
    while now and not now.stage.is_last:
        if time.monotonic() >= deadline:
            _take_back(store, now)
        time.sleep(_LOOK_S)
        now = next((each for each in store.moves.under_way() if each.token == move.token), None)
    if now is None or now.stage is Stage.REFUSED:
        raise NatctlError("transfer", now.detail if now else "it was not done in time", move.block)
    return now


def _take_back(store: PoolStore, move: Move) -> None:
    """End a move that takes too long; where it has come on meanwhile, that is what counts. Raises NatctlError."""
    from nat_rewriter.model.moves import Stage

    silent = move.taker if move.stage is Stage.ASKED else move.giver
    if move.stage is Stage.MOVED:
        reason = f"it is {move.taker}'s now, whose agent has not taken its flows up yet, and will when it runs"
        raise NatctlError("transfer", reason, move.block)
    if store.moves.answer(move.at(Stage.REFUSED, "whoever asked did not wait any longer")):
        raise NatctlError("transfer", f"the agent of {silent} did not answer; nothing has changed", move.block)


def _print_move(env: Env, found: Pool, move: Move, took_s: float) -> None:
    from nat_rewriter.report.json_lines import json_line
    from nat_rewriter.report.pools import move_line, move_object

    click.echo(json_line(move_object(found, move, took_s)) if env.json else move_line(move, took_s))


def _slices(env: Env, name: str | None) -> Sequence[Slice]:
    slices = [each for each in env.policy().slices if name in (None, each.name)]
    if not slices:
        raise UsageError("take flows", "there is no such slice in the configuration", name or env.config_path)
    return slices


def _input(env: Env) -> IO[str]:
    if env.config_path == "-":
        raise UsageError("take flows", "standard input is the flows': give the configuration as a file", "-")
    return sys.stdin


def _print_counts(env: Env, counts: dict[str, Any], clashed: Sequence[str]) -> None:
    from nat_rewriter.report.json_lines import json_line

    if env.json:
        click.echo(json_line(counts | {"clashes": clashed}))
        return
    click.echo(", ".join(f"{number} {name}" for name, number in counts.items()))
    for each in clashed:
        env.note(f"its port is in use: {each}")
