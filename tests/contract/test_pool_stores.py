"""One suite for both stores of pools: a file of SQLite's, and a real etcd."""

from __future__ import annotations

import secrets
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nat_rewriter.errors import NatctlError, StateError
from nat_rewriter.model.moves import Count, Move, Stage
from nat_rewriter.model.pools import Block, Pool, StoreAddress
from nat_rewriter.model.slices import PortRange
from nat_rewriter.pool import PoolStore, open_store

FOUR, SIX = ip_address("198.51.100.10"), ip_address("2001:db8:100::10")
POOL = Pool("ams", (FOUR, SIX), PortRange(8192, 16383), 1024, per_host=6, ttl_s=5, hold_down_s=60)
Opener = Callable[[], PoolStore]


@pytest.fixture
def store(address: StoreAddress) -> Iterator[PoolStore]:
    with open_store(address) as opened:
        opened.define(POOL)
        yield opened


def test_what_is_acquired_is_held(store: PoolStore) -> None:
    (held,) = store.acquire("ams", "h1", 1)
    assert held.block in POOL
    assert held.host == "h1"
    assert not held.resting
    assert 4 <= held.left_s <= 5
    (seen,) = store.holdings("ams")
    assert (seen.block, seen.host, seen.resting) == (held.block, "h1", False)


def test_no_two_hosts_get_the_same(store: PoolStore) -> None:
    held = [each.block for host in ("h1", "h2") for each in store.acquire("ams", host, 6)]
    assert len(set(held)) == 12
    with pytest.raises(NatctlError, match=r"4 of 16 slices are free, 5 were asked for; .*: 'ams'"):
        store.acquire("ams", "h3", 5)
    store.acquire("ams", "h3", 4)
    with pytest.raises(NatctlError, match="0 of 16 slices are free"):
        store.acquire("ams", "h4", 1)


def test_a_host_gets_no_more_than_the_pool_gives_to_one(store: PoolStore) -> None:
    store.acquire("ams", "h1", 4)
    with pytest.raises(NatctlError, match=r"h1 holds 4 of at most 6 slices \(per_host\), and cannot have 3 more"):
        store.acquire("ams", "h1", 3)
    assert len(store.acquire("ams", "h1", 2)) == 6


def test_what_is_released_rests(store: PoolStore) -> None:
    (first,) = store.acquire("ams", "h1", 1)
    store.release("ams", "h1", [first.block])
    (rest,) = store.holdings("ams")
    assert rest.resting
    assert rest.host == "h1"
    assert 55 <= rest.left_s <= 63
    others = {each.block for host in ("h1", "h2", "h3") for each in store.acquire("ams", host, 5)}
    assert first.block not in others
    with pytest.raises(NatctlError, match="0 of 16 slices are free, 1 were asked for; the others are held, or rest"):
        store.acquire("ams", "h4", 1)


def test_rest_ends(store: PoolStore) -> None:
    store.define(replace(POOL, hold_down_s=1, addresses=(FOUR,), ports=PortRange(8192, 9215)))
    (held,) = store.acquire("ams", "h1", 1)
    store.release("ams", "h1", [held.block])
    assert acquired_in_the_end(store, "h2") == held.block


def test_a_host_that_says_nothing_loses_what_it_has_and_it_rests(store: PoolStore) -> None:
    store.define(replace(POOL, hold_down_s=2, addresses=(FOUR,), ports=PortRange(8192, 9215)))
    (held,) = store.acquire("ams", "h1", 1)
    began = time.monotonic()
    while not store.holdings("ams")[0].resting:
        assert time.monotonic() < began + 30
        time.sleep(0.1)
    assert time.monotonic() >= began + 4.5
    assert store.renew("ams", "h1") == []
    with pytest.raises(NatctlError, match=r"release: h1 does not hold it: '198\.51\.100\.10:8192-9215'"):
        store.release("ams", "h1", [held.block])
    assert acquired_in_the_end(store, "h2") == held.block
    assert time.monotonic() >= began + 6.5


def acquired_in_the_end(store: PoolStore, host: str) -> Block:
    """Ask again and again for the one block of a pool."""
    end = time.monotonic() + 30
    while True:
        try:
            return store.acquire("ams", host, 1)[0].block
        except NatctlError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.1)


def test_renewing_keeps_it(store: PoolStore) -> None:
    (held,) = store.acquire("ams", "h1", 1)
    for _ in range(7):
        time.sleep(1)
        assert [each.block for each in store.renew("ams", "h1")] == [held.block]
    assert not store.holdings("ams")[0].resting


def test_release_is_whole_or_not_at_all(store: PoolStore) -> None:
    mine, other = store.acquire("ams", "h1", 1)[0].block, store.acquire("ams", "h2", 1)[0].block
    with pytest.raises(NatctlError, match="h1 does not hold it"):
        store.release("ams", "h1", [mine, other])
    assert [each.resting for each in store.holdings("ams")] == [False, False]


def test_transfer(store: PoolStore) -> None:
    block = store.acquire("ams", "h1", 1)[0].block
    with pytest.raises(NatctlError, match="h2 does not hold it"):
        store.transfer("ams", block, "h2", "h3")
    with pytest.raises(NatctlError, match="the same host"):
        store.transfer("ams", block, "h1", "h1")
    moved = store.transfer("ams", block, "h1", "h2")
    assert (moved.block, moved.host) == (block, "h2")
    assert store.renew("ams", "h1") == []
    assert [each.block for each in store.renew("ams", "h2")] == [block]
    assert [each.host for each in store.holdings("ams")] == ["h2"]


def test_history(store: PoolStore) -> None:
    block = store.acquire("ams", "h1", 1)[0].block
    store.acquire("ams", "h3", 2)
    store.transfer("ams", block, "h1", "h2")
    store.release("ams", "h2", [block])
    told = [(each.what, each.host, each.to) for each in store.history("ams", block)]
    assert told == [("acquired", "h1", None), ("transferred", "h1", "h2"), ("released", "h2", None)]
    assert len(store.history("ams")) == 5
    assert [each.what for each in store.history("ams", most=2)] == ["transferred", "released"]


def test_a_slice_remembers_its_last_changes(store: PoolStore) -> None:
    store.define(replace(POOL, hold_down_s=0))
    block = store.acquire("ams", "h0", 1)[0].block
    for number in range(20):
        store.transfer("ams", block, f"h{number}", f"h{number + 1}")
    told = store.history("ams", block)
    assert [(each.host, each.to) for each in told[-7:]] == [(f"h{n}", f"h{n + 1}") for n in range(13, 20)]


def test_definitions(store: PoolStore) -> None:
    assert not store.define(POOL)
    assert store.define(replace(POOL, ttl_s=9))
    assert store.pools() == [replace(POOL, ttl_s=9)]
    assert store.define(replace(POOL, name="fra"))
    assert [pool.name for pool in store.pools()] == ["ams", "fra"]
    with pytest.raises(NatctlError, match="there is no such pool in the store; there: ams, fra: 'x'"):
        store.acquire("x", "h1", 1)


def test_a_pool_in_use_is_not_changed_under_its_hosts(store: PoolStore) -> None:
    block = store.acquire("ams", "h1", 1)[0].block
    with pytest.raises(NatctlError, match="is held or rests, and would be no slice of it any more"):
        store.define(replace(POOL, slice_size=2048))
    with pytest.raises(NatctlError, match="is held or rests"):
        store.define(replace(POOL, addresses=tuple(each for each in POOL.addresses if each != block.address)))
    assert store.pools() == [POOL]
    assert store.define(replace(POOL, per_host=8, addresses=(*POOL.addresses, ip_address("198.51.100.11"))))


@pytest.mark.parametrize("count", [0, 33])
def test_how_many_at_once(store: PoolStore, count: int) -> None:
    with pytest.raises(NatctlError, match=f"1 to 32 slices at once, not {count}: 'ams'"):
        store.acquire("ams", "h1", count)


def test_32_at_once(store: PoolStore) -> None:
    store.define(replace(POOL, per_host=40, ports=PortRange(1024, 65535)))
    held = store.acquire("ams", "h1", 32)
    store.release("ams", "h1", [each.block for each in held])
    assert sum(each.resting for each in store.holdings("ams")) == 32


def test_hosts_that_ask_at_once(address: StoreAddress) -> None:
    """Eight hosts take and give for as long as it takes to do so 20 times each: nothing is doubled, nothing is lost."""
    with open_store(address) as store:
        store.define(replace(POOL, per_host=2, hold_down_s=0, ttl_s=60))
    owners: dict[Block, str] = {}
    faults: list[str] = []
    lock = threading.Lock()

    def live(host: str) -> None:
        with open_store(address) as mine:
            for _ in range(20):
                for each in mine.acquire("ams", host, 2):
                    with lock:
                        if owners.setdefault(each.block, host) != host:
                            faults.append(f"{each.block} of {owners[each.block]} was given to {host}")
                blocks = [block for block, owner in list(owners.items()) if owner == host]
                with lock:
                    for block in blocks:
                        del owners[block]
                mine.release("ams", host, blocks)

    with ThreadPoolExecutor(8) as hosts:
        for lived in [hosts.submit(live, f"h{number}") for number in range(8)]:
            lived.result(120)
    assert faults == []
    with open_store(address) as store:
        assert store.holdings("ams") == []
        told = [[(each.what, each.host) for each in store.history("ams", block)] for block in POOL.blocks()]
    for changes in told:  # one acquired it and the same released it, again and again
        assert [what for what, _ in changes] == ["acquired", "released"] * (len(changes) // 2)
        assert [host for _, host in changes[::2]] == [host for _, host in changes[1::2]]
    assert sum(map(len, told)) > 16 * 4


def test_processes_that_are_killed_leave_it_whole(address: StoreAddress) -> None:
    """Whatever moment they are killed at, what is held is held by them and ends."""
    with open_store(address) as store:
        store.define(replace(POOL, per_host=3, hold_down_s=0, ttl_s=5))
    code = (
        "import sys; from nat_rewriter.pool import open_store; from nat_rewriter.model.pools import StoreAddress\n"
        f"store = open_store({address!r})\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    held = store.acquire('ams', sys.argv[1], 1)\n"
        "    store.release('ams', sys.argv[1], [each.block for each in held])\n"
    )
    for number in range(4):
        process = subprocess.Popen([sys.executable, "-c", code, f"h{number}"], stdout=subprocess.PIPE)
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.05 * (number + 1))
        process.kill()
        process.communicate()
    with open_store(address) as store:
        assert {each.host for each in store.holdings("ams")} <= {f"h{number}" for number in range(4)}
        end = time.monotonic() + 30
        while store.holdings("ams"):
            assert time.monotonic() < end
            time.sleep(0.2)


# moves


def on_its_way(store: PoolStore) -> Move:
    """A move from h1 to h2 that h2 is ready for."""
    block = store.acquire("ams", "h1", 1)[0].block
    asked = store.moves.announce(POOL, block, "h1", "h2")
    assert store.moves.under_way() == [asked]
    assert store.moves.answer(asked.at(Stage.READY))
    (ready,) = store.moves.under_way()
    assert (ready.stage, ready.block, ready.giver, ready.taker) == (Stage.READY, block, "h1", "h2")
    return ready


@pytest.mark.parametrize("size", [0, 100, 3 << 20])
def test_a_move_carries_what_is_packed(store: PoolStore, size: int) -> None:
    ready, flows = on_its_way(store), secrets.token_bytes(size)
    store.moves.pack(ready, flows)
    store.transfer("ams", ready.block, "h1", "h2", ready.at(Stage.MOVED, count=Count(sent=3)))
    (moved,) = store.moves.under_way()
    assert (moved.stage, moved.count) == (Stage.MOVED, Count(sent=3))
    assert [each.block for each in store.renew("ams", "h2")] == [ready.block]
    assert store.renew("ams", "h1") == []
    assert store.moves.unpack(moved) == flows
    assert store.moves.answer(moved.at(Stage.DONE))
    assert store.moves.under_way()[0].stage is Stage.DONE


def test_an_alarm_rings_when_moves_change(store: PoolStore, address: StoreAddress) -> None:
    with open_store(address) as mine:
        alarm = mine.moves.alarm()
        assert alarm.rung()
        assert not alarm.rung()
        on_its_way(store)
        end = time.monotonic() + 10
        while not alarm.rung():
            assert time.monotonic() < end
            time.sleep(0.05)


def test_only_one_goes_on_from_a_stage(store: PoolStore) -> None:
    ready = on_its_way(store)
    assert store.moves.answer(ready.at(Stage.REFUSED, "too late"))
    assert not store.moves.answer(ready.at(Stage.READY))
    with pytest.raises(NatctlError, match="the move was taken back meanwhile"):
        store.transfer("ams", ready.block, "h1", "h2", ready.at(Stage.MOVED))
    assert [each.block for each in store.renew("ams", "h1")] == [ready.block]
    assert store.renew("ams", "h2") == []


def test_a_block_is_on_one_way(store: PoolStore) -> None:
    ready = on_its_way(store)
    with pytest.raises(NatctlError, match="it is on its way from h1 to h2"):
        store.moves.announce(POOL, ready.block, "h1", "h3")
    assert store.moves.answer(ready.at(Stage.REFUSED))
    store.moves.pack(ready, b"of the first")
    again = store.moves.announce(POOL, ready.block, "h1", "h3")
    assert store.moves.under_way() == [again]
    assert store.moves.unpack(again) == b""


def test_moves_of_what_is_not_held_change_nothing(store: PoolStore) -> None:
    ready = on_its_way(store)
    store.release("ams", "h1", [ready.block])
    with pytest.raises(NatctlError, match="h1 does not hold it"):
        store.transfer("ams", ready.block, "h1", "h2", ready.at(Stage.MOVED))
    assert store.moves.under_way() == [ready]


def test_an_announcement_ends(store: PoolStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("etcd_moves", "sqlite_moves"):
        monkeypatch.setattr(f"nat_rewriter.pool.{module}.LASTS_S", -3)
    ready = on_its_way(store)
    store.moves.pack(ready, b"flows")
    end = time.monotonic() + 30
    while store.moves.under_way():
        assert time.monotonic() < end
        time.sleep(0.2)
    assert store.moves.unpack(ready) == b""
    assert not store.moves.answer(ready.at(Stage.READY))


# what is no store


def test_etcd_that_is_not_there() -> None:
    nowhere = StoreAddress("etcd", endpoints=(("127.0.0.1", 1), ("127.0.0.1", 2)), timeout_s=1)
    told = r"no endpoint of etcd could answer \(127.0.0.1:1: .*; 127.0.0.1:2: .*\)"
    with open_store(nowhere) as store, pytest.raises(StateError, match=told):
        store.pools()


def test_the_endpoint_that_answers_is_found(etcd_port: int) -> None:
    with open_store(StoreAddress("etcd", endpoints=(("127.0.0.1", 1), ("127.0.0.1", etcd_port)))) as store:
        assert store.define(replace(POOL, name=f"p{secrets.token_hex(4)}"))


def test_sqlite_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "rubbish").write_bytes(b"rubbish" * 1000)
    with pytest.raises(StateError, match=r"read pools: file is not a database: '.*rubbish'"):
        open_store(StoreAddress("sqlite", str(tmp_path / "rubbish")))
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE mine (a)")
    with pytest.raises(StateError, match="another program's database"):
        open_store(StoreAddress("sqlite", str(tmp_path / "other")))
    with pytest.raises(StateError, match="read pools"):
        open_store(StoreAddress("sqlite", "/proc/none/pools.sqlite"))


def test_a_broken_sqlite_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "pools.sqlite"
    with open_store(StoreAddress("sqlite", str(path))) as store:
        store.define(POOL)
        for number in range(6):
            store.acquire("ams", f"h{number}", 1)
    content = bytearray(path.read_bytes())
    content[1024:] = bytes(byte ^ 0x5A for byte in content[1024:])
    path.write_bytes(content)
    with (
        pytest.raises(StateError, match=r"malformed|not a database"),
        open_store(StoreAddress("sqlite", str(path))) as store,
    ):
        store.holdings("ams")


def test_after_a_boot_everything_rests(tmp_path: Path) -> None:
    path = tmp_path / "pools.sqlite"
    with open_store(StoreAddress("sqlite", str(path))) as store:
        store.define(POOL)
        store.acquire("ams", "h1", 1)
    with sqlite3.connect(path) as database:  # as if it had been written before
        database.execute("UPDATE boot SET id = 'another'")
        database.execute("UPDATE holding SET held_until = held_until + 1e9, rests_until = rests_until + 1e9")
    with open_store(StoreAddress("sqlite", str(path))) as store:
        (rest,) = store.holdings("ams")
        assert rest.resting
        assert rest.left_s <= 60
