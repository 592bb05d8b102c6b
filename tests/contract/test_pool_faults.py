"""Stores that cannot be what they should: each fault is told with its reason, nothing is lost and nothing doubled."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nat_rewriter.errors import NatctlError, StateError
from nat_rewriter.model.pools import Pool, StoreAddress
from nat_rewriter.model.slices import PortRange
from nat_rewriter.pool import PoolStore, open_store
from netns_lab.etcd_cluster import etcd_server

POOL = Pool("ams", (ip_address("198.51.100.10"),), PortRange(8192, 16383), 1024, per_host=6, ttl_s=30, hold_down_s=60)
HOUR_S = 3600
# What a host does whose clock is off: the store's own code, and no clock but the one that anybody can set is another.
WRONG_CLOCK = """
import sys, time
off, right = float(sys.argv[1]), time.time
time.time = lambda: right() + off
from nat_rewriter.model.pools import StoreAddress
from nat_rewriter.pool import PoolStore, open_store
with open_store({address!r}) as store:
    for each in store.acquire("ams", sys.argv[2], 2):
        print(each.block.first, each.left_s)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store in which two hosts hold slices."""
    found = tmp_path / "pools.sqlite"
    with open_store(StoreAddress("sqlite", str(found))) as store:
        store.define(POOL)
        store.acquire("ams", "h1", 2)
        store.acquire("ams", "h2", 2)
    return found


def held(path: Path) -> list[tuple[str, int]]:
    with open_store(StoreAddress("sqlite", str(path))) as store:
        return sorted((each.host, each.block.first) for each in store.holdings("ams") if not each.resting)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def scribble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100:4096] = os.urandom(3996)
    path.write_bytes(content)


def become_newer(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (truncate, "malformed|disk image"),
        (scribble, "malformed|not a database|another program"),
        (become_newer, "written by a newer natctl"),
    ],
)
def test_a_file_that_is_not_whole(path: Path, spoil: Callable[[Path], None], told: str) -> None:
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(StateError, match=told), open_store(StoreAddress("sqlite", str(path))) as store:
        store.acquire("ams", "h3", 1)
    assert path.read_bytes() == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", "size=256k", "natctl-test", str(place)]
    if os.geteuid() or subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("needs to mount: run ./dev test")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    return disk / "filler"


def acquire_again_and_again(address: StoreAddress) -> None:
    with open_store(address) as store:
        for number in range(1000):
            blocks = [each.block for each in store.acquire("ams", f"h{number}", 1)]
            store.release("ams", f"h{number}", blocks)


def test_a_full_disk(path: Path, small_disk: Path) -> None:
    there = Path(shutil.copy(path, small_disk))
    filler = fill(small_disk)
    with pytest.raises(StateError, match=r"full|disk i/o error|unable to open"):
        acquire_again_and_again(StoreAddress("sqlite", str(there)))
    filler.unlink()
    assert {each for each in held(path) if each[0] == "h2"} <= set(held(there))


def test_a_disk_that_cannot_be_written(path: Path, small_disk: Path) -> None:
    there = Path(shutil.copy(path, small_disk))
    subprocess.run(["mount", "-o", "remount,bind,ro", str(small_disk)], check=True)
    with pytest.raises(StateError, match=r"readonly|read-only|unable to open"):
        acquire_again_and_again(StoreAddress("sqlite", str(there)))


@pytest.fixture(params=["sqlite", "etcd"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreAddress]:
    if request.param == "sqlite":
        yield StoreAddress("sqlite", str(tmp_path / "pools.sqlite"))
        return
    if not shutil.which("etcd"):
        pytest.skip("needs etcd: apt-get install etcd-server")
    with etcd_server(tmp_path) as port:
        yield StoreAddress("etcd", endpoints=(("127.0.0.1", port),))


def test_hosts_whose_clocks_are_off_by_an_hour(address: StoreAddress) -> None:
    """Nothing that a clock says which somebody can set decides who has what, or for how long."""
    with open_store(address) as store:
        store.define(POOL)
        mine = {each.block.first for each in store.acquire("ams", "h1", 2)}
        others: set[int] = set()
        for host, off in (("slow", -HOUR_S), ("fast", HOUR_S)):
            code = WRONG_CLOCK.format(address=address)
            done = subprocess.run([sys.executable, "-c", code, str(off), host], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            got = [line.split() for line in done.stdout.splitlines()]
            assert all(25 < float(left_s) <= 30 for _, left_s in got)
            others |= {int(first) for first, _ in got}
        assert len(mine | others) == 6
        assert all(20 < each.left_s <= 30 and not each.resting for each in store.holdings("ams"))
        assert len(store.renew("ams", "h1")) == 2


def define_without_end(store: PoolStore) -> None:
    addresses = tuple(POOL.addresses[0] + number for number in range(9000))
    for number in range(1000):
        store.define(replace(POOL, name=f"p{number}", addresses=addresses))


def test_an_etcd_whose_space_is_used_up(tmp_path: Path) -> None:
    """Who holds something goes on renewing it and may give it back; nobody gets anything new, and it is told why."""
    if not shutil.which("etcd"):
        pytest.skip("needs etcd: apt-get install etcd-server")
    with etcd_server(tmp_path, "--quota-backend-bytes", str(2 << 20)) as port:
        address = StoreAddress("etcd", endpoints=(("127.0.0.1", port),), timeout_s=10)
        with open_store(address) as store:
            store.define(POOL)
            before = store.acquire("ams", "h1", 2)
            with pytest.raises(NatctlError, match="database space exceeded"):
                define_without_end(store)
            with pytest.raises(StateError, match=r"etcd refused: .*database space exceeded"):
                store.acquire("ams", "h2", 1)
            assert {each.block for each in store.renew("ams", "h1")} == {each.block for each in before}
            assert [each.host for each in store.holdings("ams")] == ["h1", "h1"]
