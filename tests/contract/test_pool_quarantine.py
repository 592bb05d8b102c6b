"""Slices whose keys vanish from etcd while their holders use them: who gets one waits until they must have stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from secrets import token_hex

import pytest

from nat_rewriter.errors import NatctlError
from nat_rewriter.model.pools import Holding, Pool, StoreAddress
from nat_rewriter.model.slices import PortRange
from nat_rewriter.pool import PoolStore, open_store
from nat_rewriter.pool import etcd_requests as etcd
from nat_rewriter.pool.etcd_client import EtcdClient
from nat_rewriter.pool.etcd_gateway import Endpoint

POOL = Pool("ams", (ip_address("198.51.100.10"),), PortRange(8192, 9215), 1024, per_host=4, ttl_s=4, hold_down_s=0)
(BLOCK,) = POOL.blocks()


@pytest.fixture
def address(etcd_port: int) -> StoreAddress:
    return StoreAddress("etcd", endpoints=(("127.0.0.1", etcd_port),), prefix=token_hex(4))


@pytest.fixture
def store(address: StoreAddress) -> Iterator[PoolStore]:
    with open_store(address) as opened:
        opened.define(POOL)
        yield opened


def end_leases(address: StoreAddress, host: str) -> None:
    """Do what an old leader of etcd does when it wakes: end the leases of a host that goes on using what it has."""
    client = EtcdClient(address)
    (found,) = client.read([etcd.key(f"{address.prefix}/host/ams/{host}")]).found
    client.close()
    endpoint = Endpoint(*address.endpoints[0], 5, None)
    for kind in ("short", "long"):
        endpoint.ask("lease/revoke", {"ID": json.loads(found[0].value)[kind]})
    endpoint.close()


def test_what_vanished_is_held_in_quarantine(store: PoolStore, address: StoreAddress) -> None:
    store.acquire("ams", "h1", 1)
    end_leases(address, "h1")
    began = time.monotonic()
    (held,) = store.acquire("ams", "h2", 1)
    assert 3 <= held.quarantine_s <= 4
    assert store.renew("ams", "h1") == []
    while (held := store.renew("ams", "h2")[0]).quarantine_s:
        (seen,) = store.holdings("ams")
        assert (seen.host, seen.resting) == ("h2", False)
        assert time.monotonic() < began + 30
        time.sleep(0.2)
    assert time.monotonic() >= began + 4  # renewing did not prolong it, and nothing cut it short
    assert [each.quarantine_s for each in store.holdings("ams")] == [0]


def test_the_quarantine_outlives_whoever_asked_for_it(store: PoolStore, address: StoreAddress) -> None:
    store.acquire("ams", "h1", 1)
    end_leases(address, "h1")
    store.acquire("ams", "h2", 1)
    with open_store(address) as another:
        assert another.renew("ams", "h2")[0].quarantine_s
        assert another.holdings("ams")[0].quarantine_s


@pytest.mark.parametrize("how", ["never used", "given back", "moved and given back"])
def test_what_nobody_can_be_using_is_used_at_once(store: PoolStore, how: str) -> None:
    if how != "never used":
        store.acquire("ams", "h1", 1)
    if how == "moved and given back":
        store.transfer("ams", BLOCK, "h1", "h2")
        store.release("ams", "h2", [BLOCK])
    elif how == "given back":
        store.release("ams", "h1", [BLOCK])
    (held,) = store.acquire("ams", "h3", 1)
    assert held.quarantine_s == 0


def test_a_slice_that_was_moved_and_vanished(store: PoolStore, address: StoreAddress) -> None:
    store.acquire("ams", "h1", 1)
    assert store.transfer("ams", BLOCK, "h1", "h2").quarantine_s == 0
    end_leases(address, "h2")
    assert store.acquire("ams", "h3", 1)[0].quarantine_s


def test_a_slice_whose_host_died(store: PoolStore) -> None:
    store.acquire("ams", "h1", 1)
    assert acquired_in_the_end(store, "h2").quarantine_s


def acquired_in_the_end(store: PoolStore, host: str) -> Holding:
    end = time.monotonic() + 30
    while True:
        try:
            return store.acquire("ams", host, 1)[0]
        except NatctlError:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_what_was_given_back_goes_first(store: PoolStore, address: StoreAddress) -> None:
    store.define(replace(POOL, ports=PortRange(8192, 16383)))
    vanished = {each.block for each in store.acquire("ams", "h1", 4)}
    end_leases(address, "h1")
    taken = store.acquire("ams", "h2", 3)
    assert not any(each.quarantine_s for each in taken)
    assert vanished.isdisjoint(each.block for each in taken)
    more = store.acquire("ams", "h3", 2)
    assert sorted(bool(each.quarantine_s) for each in more) == [False, True]


def test_given_back_in_quarantine_it_rests_as_long(store: PoolStore, address: StoreAddress) -> None:
    store.acquire("ams", "h1", 1)
    end_leases(address, "h1")
    began = time.monotonic()
    store.acquire("ams", "h2", 1)
    store.release("ams", "h2", [BLOCK])
    assert store.holdings("ams")[0].resting
    held = acquired_in_the_end(store, "h3")
    assert held.quarantine_s == 0
    assert time.monotonic() >= began + 4


def test_in_quarantine_it_is_not_moved(store: PoolStore, address: StoreAddress) -> None:
    store.acquire("ams", "h1", 1)
    end_leases(address, "h1")
    store.acquire("ams", "h2", 1)
    with pytest.raises(NatctlError, match="transfer: h2 does not use it yet: its last holder has not given it back"):
        store.transfer("ams", BLOCK, "h2", "h3")
    assert [each.host for each in store.holdings("ams")] == ["h2"]


def test_the_term_of_the_last_holder_counts(store: PoolStore, address: StoreAddress) -> None:
    store.define(replace(POOL, ttl_s=60))
    store.acquire("ams", "h1", 1)
    store.define(POOL)  # h1 goes on by the term that it was granted
    end_leases(address, "h1")
    assert 55 <= store.acquire("ams", "h2", 1)[0].quarantine_s <= 60
    end_leases(address, "h2")  # h1 may be using it all the same
    assert 55 <= store.acquire("ams", "h3", 1)[0].quarantine_s <= 60


def test_histories_without_terms(store: PoolStore, address: StoreAddress) -> None:
    """What natctl has written before it wrote terms: those of the pool count."""
    client = EtcdClient(address)
    told = json.dumps([[time.time(), "acquired", "h1", None]])
    client.change([], [etcd.put(f"{address.prefix}/log/ams/{BLOCK.address}/{BLOCK.first:05d}", told)])
    client.close()
    assert [(each.what, each.host) for each in store.history("ams")] == [("acquired", "h1")]
    assert 3 <= store.acquire("ams", "h2", 1)[0].quarantine_s <= 4


def test_a_block_that_two_records_have(store: PoolStore, address: StoreAddress) -> None:
    """The key of the block says whose it is, also while its last holder has only lost the long one of its leases."""
    store.acquire("ams", "h1", 1)
    client = EtcdClient(address)
    taken = f"{address.prefix}/taken/ams/{BLOCK.address}/{BLOCK.first:05d}"
    client.change([], [etcd.delete(taken)])
    client.close()
    store.acquire("ams", "h2", 1)
    assert [each.host for each in store.holdings("ams")] == ["h2"]
