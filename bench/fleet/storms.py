"""What hosts ask of a cluster when they begin, and for as long as they hold something."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

from bench.fleet import hosts
from bench.fleet.hosts import Fleet
from bench.fleet.place import POOL, cluster, pool_of, processor_s, store_of
from nat_rewriter.model.pools import StoreAddress
from nat_rewriter.pool import PoolStore, open_store
from nat_rewriter.pool.etcd_client import EtcdClient
from netns_lab.etcd_cluster import Cluster

_ASKING = 16  # processes
BEGIN, RENEW, KEEP_ALIVE = (
    "it begins, and takes its first slice",
    "it renews all that it holds",
    "it keeps one lease alive",
)
QUESTIONS = 5  # of a host that begins: the pools, its record and free slices, two leases, the change


class Asked(NamedTuple):
    """What one kind of question costs."""

    what: str
    fleet: Fleet
    etcd_s: float

    @property
    def count(self) -> int:
        """How often it was asked."""
        return len(self.fleet.took_s)

    @property
    def a_second(self) -> float:
        """How many the machine answered a second, those who asked included."""
        return self.count / self.fleet.seconds

    @property
    def etcd_ms(self) -> float:
        """Processor time of all members for one, in milliseconds."""
        return self.etcd_s / self.count * 1000

    @property
    def host_ms(self) -> float:
        """Processor time of the host for one, in milliseconds."""
        return self.fleet.processor_s / self.count * 1000


def ask(seconds: float) -> dict[str, Asked]:
    """Return what beginnings, renewals and single keep-alives cost."""
    with cluster() as running:
        with open_store(store_of(running)) as store:
            store.define(pool_of(256 * 1024))
            for number in range(_ASKING):
                store.acquire(POOL, f"h{number}", 4)
        lease = EtcdClient(store_of(running)).grant(3600)
        kinds: dict[str, Callable[[StoreAddress], hosts.Work]] = {
            BEGIN: lambda address: functools.partial(_begin, address),
            RENEW: lambda address: hosts.renewal,
            KEEP_ALIVE: lambda address: functools.partial(_keep_alive, EtcdClient(address), lease),
        }
        return {what: _ask(running, what, work, seconds) for what, work in kinds.items()}


def _ask(running: Cluster, what: str, work: Callable[[StoreAddress], hosts.Work], seconds: float) -> Asked:
    stores = [store_of(running, number) for number in range(_ASKING)]
    before = processor_s(running)
    fleet = hosts.run(stores, work(stores[0]), seconds=seconds)
    return Asked(what, fleet, processor_s(running) - before)


def _begin(address: StoreAddress, store: PoolStore, host: str) -> float:
    """Let a host begin that nobody knows, over a connection of its own."""
    began = time.perf_counter()
    with open_store(address) as mine:
        mine.acquire(POOL, f"{host}.{time.time_ns()}", 1)
    return time.perf_counter() - began


def _keep_alive(client: EtcdClient, lease: int, store: PoolStore, host: str) -> float:
    began = time.perf_counter()
    client.keep_alive(lease)
    return time.perf_counter() - began
