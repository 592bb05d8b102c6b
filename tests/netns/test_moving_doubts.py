"""Moves whose store fails, lies or hears nothing: the kernel lets a slice through on one host, whatever comes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from own_network import own_network, run

from nat_rewriter.controller.holdings import Holdings
from nat_rewriter.controller.moving import Moving
from nat_rewriter.errors import StateError
from nat_rewriter.kernel.conntrack import dump
from nat_rewriter.kernel.moved_flows import insert_flows
from nat_rewriter.model.flows import Flow, Status, flow_from_record
from nat_rewriter.model.moves import Count, Move, Stage
from nat_rewriter.model.pools import Block, Demand, Holding, Pool
from nat_rewriter.model.slices import PortRange
from nat_rewriter.model.tuples import FlowTuple
from nat_rewriter.pool.sqlite_store import SqliteStore
from nat_rewriter.report.parcels import pack_flows

SOFT, CLIENT, SERVER = map(ip_address, ("198.51.100.10", "10.0.0.2", "203.0.113.1"))
POOL = Pool("fleet", (SOFT,), PortRange(9216, 10239), 1024, per_host=1, ttl_s=20)
BLOCK = Block(SOFT, 9216, 1024)
OUT = FlowTuple("tcp", CLIENT, 40000, SERVER, 443)
FLOW = Flow(OUT, FlowTuple("tcp", SERVER, 443, SOFT, 9300), Status.SEEN_REPLY, 0, state="ESTABLISHED", timeout_s=300)


class FaultyStore(SqliteStore):
    """A store that does not answer a transfer: it has not made it, or it has."""

    fails, has_made_it = False, False

    def transfer(self, name: str, block: Block, giver: str, taker: str, move: Move | None = None) -> Holding:
        """Fail, if that is asked for."""
        if self.fails and not self.has_made_it:
            raise StateError("change pools", "no answer", "test")
        made = super().transfer(name, block, giver, taker, move)
        if self.fails:
            raise StateError("change pools", "no answer", "test")
        return made


class Agent:
    """What of an agent moves slices, in the namespace of this thread."""

    def __init__(self, store: FaultyStore, host: str) -> None:
        self.told: list[str] = []
        self.applied = 0
        self.holdings = Holdings({POOL: Demand()}, "natctl", store, host, lambda deed: self.told.append(deed.what))
        self.moving = Moving(self.holdings, self._apply, pytest.fail)
        self.moving.begin()
        self.holdings.renew(self.holdings.of_pools[0])
        self.holdings.raise_fence()

    def look(self) -> None:
        self.moving.look(busy=False)

    def close(self) -> None:
        self.holdings.close()

    def _apply(self) -> None:
        self.applied += 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FaultyStore]:
    with FaultyStore(str(tmp_path / "pools")) as opened:
        opened.define(POOL)
        opened.acquire("fleet", "a", 1)
        yield opened


@contextmanager
def agent(store: FaultyStore, host: str) -> Iterator[Agent]:
    with own_network():
        made = Agent(store, host)
        try:
            yield made
        finally:
            made.close()


def let_through() -> bool:
    """Tell whether the kernel lets packets of the slice through."""
    return "198.51.100.10 . 9216-10239" in run("nft list table inet natctl_terms")


def listed() -> list[Flow]:
    return [flow_from_record(each) for each in dump()]


def ready(store: FaultyStore) -> Move:
    """A move that the taker waits for."""
    asked = store.moves.announce(POOL, BLOCK, "a", "b")
    assert store.moves.answer(asked.at(Stage.READY))
    return store.moves.under_way()[0]


def moved(store: FaultyStore, parcel: bytes) -> None:
    """A move whose taker has to fetch the flows."""
    move = ready(store)
    store.moves.pack(move, parcel)
    store.transfer("fleet", BLOCK, "a", "b", move.at(Stage.MOVED, count=Count(sent=1)))


def stage(store: FaultyStore) -> Stage:
    (move,) = store.moves.under_way()
    return move.stage


def test_a_move_that_was_not_made_is_taken_back(store: FaultyStore) -> None:
    with agent(store, "a") as giver:
        insert_flows([FLOW])
        ready(store)
        store.fails = True
        giver.look()
        assert giver.told == ["closed"]
        assert not let_through()
        giver.look()
        assert giver.told == ["closed", "kept"]
        assert let_through()
        assert stage(store) is Stage.REFUSED
        assert [(each.timeout_s or 0) > 200 for each in listed()] == [True]
    assert [each.host for each in store.holdings("fleet")] == ["a"]


def test_a_move_that_was_made_is_found_out(store: FaultyStore) -> None:
    with agent(store, "a") as giver:
        insert_flows([FLOW])
        ready(store)
        store.fails = store.has_made_it = True
        giver.look()
        giver.look()
        assert giver.told == ["closed", "moved"]
        assert not let_through()
        assert giver.holdings.blocks() == frozenset()
        (entry,) = listed()  # late packets find it, and are dropped
        assert entry.status & Status.FIXED_TIMEOUT
        assert (entry.timeout_s or 0) <= 60
    assert [each.host for each in store.holdings("fleet")] == ["b"]


def test_what_is_taken_is_let_through_with_its_flows(store: FaultyStore) -> None:
    with own_network():
        insert_flows([FLOW])
        moved(store, pack_flows(dump()))
    with agent(store, "b") as taker:  # which was started anew in the middle
        assert not let_through()
        assert taker.told == []
        taker.look()
        assert let_through()
        assert taker.told == ["taken-over"]
        assert [(each.original, each.reply, each.state) for each in listed()] == [(OUT, FLOW.reply, "ESTABLISHED")]
        assert taker.applied == 1
    assert stage(store) is Stage.DONE


@pytest.mark.parametrize("parcel", [b"", b"rubbish", "outside"])
def test_a_slice_without_its_flows_is_taken_all_the_same(store: FaultyStore, parcel: bytes | str) -> None:
    if isinstance(parcel, str):
        with own_network():
            insert_flows([replace(FLOW, reply=replace(FLOW.reply, dport=9000))])
            parcel = pack_flows(dump())
    moved(store, parcel)
    with agent(store, "b") as taker:
        taker.look()
        assert taker.told == ["failed", "taken-over"]
        assert let_through()
        assert listed() == []
    (move,) = store.moves.under_way()
    assert (move.stage, move.count.clashed) == (Stage.DONE, 1)


def test_a_port_that_is_in_use_is_counted(store: FaultyStore) -> None:
    with own_network():
        insert_flows([FLOW])
        moved(store, pack_flows(dump()))
    with agent(store, "b") as taker:
        insert_flows([replace(FLOW, original=replace(OUT, sport=50000))])
        taker.look()
        assert [each.original.sport for each in listed()] == [50000]
    assert store.moves.under_way()[0].count.clashed == 1


def test_a_taker_with_no_room_refuses(store: FaultyStore) -> None:
    store.moves.announce(POOL, BLOCK, "a", "b")
    with agent(store, "b") as taker:
        taker.holdings.of_pools[0].until[Block(SOFT, 10240, 1024)] = math.inf
        taker.look()
    (move,) = store.moves.under_way()
    assert move.stage is Stage.REFUSED
    assert "b holds 1 slices, and may hold no more (per_host)" in move.detail


def test_who_gives_back_another_slice_moves_none(store: FaultyStore) -> None:
    store.moves.announce(POOL, BLOCK, "a", "b")
    with agent(store, "b") as taker:
        taker.moving.look(busy=True)
    assert "giving back another slice" in store.moves.under_way()[0].detail


def test_what_a_giver_began_before_it_was_started_anew_is_taken_back(store: FaultyStore) -> None:
    ready(store)
    with agent(store, "a") as giver:
        assert stage(store) is Stage.REFUSED
        assert let_through()
        giver.look()
        assert giver.told == []
