"""Hosts that take slices and give them back as fast as they can, and what became of every slice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from bench.fleet import hosts
from bench.fleet.audit import Audit, audit
from bench.fleet.hosts import Fleet
from bench.fleet.place import POOL, PREFIX, pool_of, processor_s, store_of
from nat_rewriter.model.pools import Block, Change
from nat_rewriter.pool import etcd_requests as etcd
from nat_rewriter.pool import open_store
from nat_rewriter.pool.etcd_client import EtcdClient
from netns_lab.etcd_cluster import Cluster

_SLICES = 64 * 1024  # as many as rest when ten thousand pairs a minute rest for two minutes, three times over


class Churned(NamedTuple):
    """What so many hosts did, what it cost etcd, what was seen of it, and what the slices themselves remember."""

    fleet: Fleet
    etcd_s: float
    seen: Audit
    told_wrong: list[str]

    @property
    def pairs(self) -> int:
        """How often a slice was taken and given back."""
        return sum(len(each.took_s) for each in self.fleet.did)


def churn(running: Cluster, count: int, *, times: int = 0, seconds: float = 0.0, hold_down_s: int = 120) -> Churned:
    """Let so many hosts take and give back, and look at every change afterwards."""
    client = EtcdClient(store_of(running))
    with open_store(store_of(running)) as store:
        store.define(pool_of(_SLICES, hold_down_s=hold_down_s))
        since, before = _revision(client), processor_s(running)
        stores = [store_of(running, number) for number in range(count)]
        fleet = hosts.run(stores, hosts.pair, times=times, seconds=seconds)
        spent, until = processor_s(running) - before, _revision(client)
        seen = audit(client, PREFIX, since, until)
        told_wrong = out_of_turn(store.history(POOL, most=1_000_000))
    client.close()
    return Churned(fleet, spent, seen, told_wrong)


def out_of_turn(changes: Iterable[Change]) -> list[str]:
    """Return what a history tells that cannot be: each block is acquired, then released by the same host, in turns."""
    users: dict[Block, str] = {}
    wrong = list[str]()
    for change in changes:
        user = users.pop(change.block, None)
        if (change.what, user) not in (("acquired", None), ("released", change.host)):
            wrong.append(f"{change.block} was {change.what} by {change.host} while it was of {user}")
        if change.what == "acquired":
            users[change.block] = change.host
    return wrong + [f"{block} is still of {user}" for block, user in users.items()]


def _revision(client: EtcdClient) -> int:
    return client.read([etcd.key(PREFIX)]).revision
