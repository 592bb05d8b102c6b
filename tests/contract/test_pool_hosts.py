"""Where hosts are, and who holds what, from both stores of pools: as it is, and as it changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nat_rewriter.errors import StateError
from nat_rewriter.model.inbound import Holders, Peer
from nat_rewriter.model.pools import Pool, StoreAddress
from nat_rewriter.model.slices import PortRange
from nat_rewriter.pool import PoolStore, open_store
from nat_rewriter.pool.hosts import HoldersWatch
from netns_lab.etcd_cluster import Cluster, loopback

POOL = Pool("ams", (ip_address("198.51.100.10"),), PortRange(8192, 16383), 1024, ttl_s=5, hold_down_s=1)
SIX = Pool("six", (ip_address("2001:db8:100::10"),), PortRange(8192, 16383), 512, ttl_s=5, hold_down_s=1)
H1 = Peer("h1", (ip_address("192.0.2.11"), ip_address("2001:db8::11")), "02:00:00:00:00:01")
H2 = Peer("h2", (ip_address("192.0.2.12"),), "02:00:00:00:00:02")


@pytest.fixture
def store(address: StoreAddress) -> Iterator[PoolStore]:
    with open_store(address) as opened:
        opened.define(POOL)
        opened.define(SIX)
        yield opened


@pytest.fixture
def watch(address: StoreAddress) -> Iterator[HoldersWatch]:
    """A watch by somebody else."""
    with open_store(address) as other, other.hosts.watch() as watching:
        yield watching


def until(watch: HoldersWatch, met: Callable[[Holders], bool], patience_s: float = 20.0) -> Holders:
    end = time.monotonic() + patience_s
    seen = None
    while time.monotonic() < end:
        if (told := watch.wait(0.5)) is not None:
            seen = told
            if met(told):
                return told
    raise AssertionError(seen)


def test_who_holds_what_and_where_they_are(store: PoolStore) -> None:
    assert store.hosts.holders() == Holders({}, {})
    held = [store.acquire(pool, host, 2) for pool, host in (("ams", "h1"), ("ams", "h2"), ("six", "h1"))]
    store.hosts.announce(H1, 30)
    store.hosts.announce(H2, 30)
    blocks = {each.block: each.host for some in held for each in some}
    assert store.hosts.holders() == Holders.of(blocks, {"h1": H1, "h2": H2})
    assert H1.address(6) == ip_address("2001:db8::11")
    assert H2.address(6) is None


def test_a_host_that_moves_and_departs(store: PoolStore) -> None:
    store.hosts.announce(H1, 30)
    moved = replace(H1, link="02:00:00:00:00:09")
    store.hosts.announce(moved, 30)
    assert store.hosts.holders().peers == {"h1": moved}
    store.hosts.depart("h1")
    store.hosts.depart("h1")
    assert store.hosts.holders().peers == {}


def test_changes_are_told(store: PoolStore, watch: HoldersWatch) -> None:
    assert watch.wait(5) == Holders({}, {})
    assert watch.wait(0.1) is None
    block = store.acquire("ams", "h1", 1)[0].block
    assert until(watch, lambda told: bool(told.held)).held == {"h1": {block}}
    store.hosts.announce(H2, 30)
    assert until(watch, lambda told: bool(told.peers)).peers == {"h2": H2}
    store.transfer("ams", block, "h1", "h2")
    until(watch, lambda told: told.held == {"h2": {block}})
    store.release("ams", "h2", [block])
    until(watch, lambda told: told.held == {})
    store.hosts.depart("h2")
    until(watch, lambda told: told == Holders({}, {}))


def test_renewals_are_no_changes(store: PoolStore, watch: HoldersWatch) -> None:
    store.acquire("ams", "h1", 1)
    store.hosts.announce(H1, 30)
    assert watch.wait(5) is not None
    store.renew("ams", "h1")
    store.hosts.announce(H1, 30)
    assert watch.wait(0.6) is None


def test_who_falls_silent_is_forgotten(store: PoolStore, watch: HoldersWatch) -> None:
    store.acquire("ams", "h1", 1)
    store.hosts.announce(H1, 5)
    assert watch.wait(5) is not None
    until(watch, lambda told: told == Holders({}, {}))


def test_a_pool_that_comes_later(store: PoolStore, watch: HoldersWatch) -> None:
    assert watch.wait(5) is not None
    store.define(replace(POOL, name="later", addresses=(ip_address("198.51.100.11"),)))
    block = store.acquire("later", "h1", 1)[0].block
    try:
        until(watch, lambda told: told.held == {"h1": {block}}, 3)
    except StateError:  # the definitions have to be read anew
        until(watch, lambda told: told.held == {"h1": {block}})


def test_a_watch_outlives_the_endpoint_that_it_listened_to(tmp_path: Path) -> None:
    with Cluster(tmp_path, loopback(3)) as cluster:
        address = StoreAddress("etcd", endpoints=cluster.endpoints)
        with open_store(address) as store, open_store(address) as other, other.hosts.watch() as watch:
            store.define(POOL)
            assert watch.wait(5) is not None
            cluster.members[0].kill()
            with pytest.raises(StateError, match="watch the store"):
                until(watch, lambda told: False)
            block = store.acquire("ams", "h1", 1)[0].block
            until(watch, lambda told: told.held == {"h1": {block}})
