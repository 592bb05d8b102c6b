"""What a store weighs, and what it costs to ask it, with ten thousand to a million slices held."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from bench.fleet import hosts
from bench.fleet.place import POOL, PREFIX, cluster, pool_of, resident_mib, store_of
from nat_rewriter.errors import NatctlError
from nat_rewriter.model.pools import Block, Pool, StoreAddress
from nat_rewriter.pool import PoolStore, open_store
from nat_rewriter.pool import etcd_requests as etcd
from nat_rewriter.pool.etcd_client import MOST_IN_ONE, EtcdClient
from nat_rewriter.pool.etcd_gateway import Endpoint
from nat_rewriter.pool.etcd_records import Seen, nothing
from nat_rewriter.pool.etcd_store import EtcdStore
from netns_lab.etcd_cluster import Cluster

OF_HOST = 100  # slices
_LOADERS = 2
_TERM_S = 7200  # nobody renews
_SPARE = 5 / 4  # of slices, so that free ones are found as in a pool that is not full
_QUOTA = 8 << 30
_MIB = 1 << 20


class Weight(NamedTuple):
    """A store with so many slices held; times in seconds."""

    slices: int
    filled_s: float
    file_mib: float
    used_mib: float  # of the file
    memory_mib: float
    acquire_ms: float
    renew_ms: float
    read_all_s: float
    history_ms: float
    compact_s: float
    defragment_s: float
    defragmented_mib: float
    restart_s: float


def weigh(slices: int) -> Weight:
    """Fill one member, and measure."""
    with cluster(1, "--quota-backend-bytes", str(_QUOTA)) as running:
        store = store_of(running, timeout_s=120)
        filled_s = _timed(lambda: _fill(store, slices))
        with open_store(store) as opened:
            return _weigh(running, opened, store, slices, filled_s)


def _weigh(running: Cluster, store: PoolStore, address: StoreAddress, slices: int, filled_s: float) -> Weight:
    client = EtcdClient(address)
    taken = etcd.under(f"{PREFIX}/taken/{POOL}/")
    file_mib, used_mib = _sizes(running)
    (memory_mib,) = resident_mib(running)
    acquire_ms = _median_ms(lambda: hosts.pair(store, "newcomer"))
    renew_ms = _median_ms(lambda: hosts.renewal(store, "h0"))
    block = store.renew(POOL, "h0")[0].block
    history_ms = _median_ms(lambda: _timed(lambda: store.history(POOL, block)))
    read_all_s = _timed(lambda: client.read_all([taken]))
    revision = client.read([etcd.key(PREFIX)]).revision
    compact_s = _timed(lambda: _maintain(running, "kv/compaction", {"revision": revision, "physical": True}))
    defragment_s = _timed(lambda: _maintain(running, "maintenance/defragment", {}))
    defragmented_mib, _ = _sizes(running)
    restart_s = _timed(lambda: _restart(running))
    client.close()
    return Weight(
        slices, filled_s, file_mib, used_mib, memory_mib, acquire_ms, renew_ms, read_all_s, history_ms, compact_s,
        defragment_s, defragmented_mib, restart_s,
    )  # fmt: skip


class Filler(EtcdStore):
    """Writes what natctl writes, without looking whether it may: nobody else is there."""

    def give(self, pool: Pool, host: str, blocks: Sequence[Block]) -> None:
        """Let a host hold blocks, on leases of its own."""
        record = self._with_leases(nothing(host), pool).with_more(blocks)
        changes = [self._written(record, pool)]
        for block in blocks:
            changes += [self._given(block, record, pool)]
            changes += [self._told(block, Seen(False, [], 0), "acquired", host, pool)]
        for start in range(0, len(changes), MOST_IN_ONE):
            self._client.change([], changes[start : start + MOST_IN_ONE])


def _fill(address: StoreAddress, slices: int) -> None:
    """Give each of as many hosts as that takes a hundred slices."""
    pool = pool_of(int(slices * _SPARE), ttl_s=_TERM_S)
    with Filler(address) as filler:
        filler.define(pool)
    count = slices // OF_HOST
    parts = [range(first, count, _LOADERS) for first in range(_LOADERS)]
    loaders = [multiprocessing.Process(target=_fill_part, args=(address, pool, part)) for part in parts]
    for loader in loaders:
        loader.start()
    for loader in loaders:
        loader.join()
    if any(loader.exitcode for loader in loaders):
        raise NatctlError("fill the store", "a loader failed", str(address))


def _fill_part(address: StoreAddress, pool: Pool, numbers: Iterable[int]) -> None:
    with Filler(address) as filler:
        for number in numbers:
            blocks = [pool.block_at(place) for place in range(number * OF_HOST, (number + 1) * OF_HOST)]
            filler.give(pool, f"h{number}", blocks)


def _restart(running: Cluster) -> None:
    (member,) = running.members
    member.kill()
    member.start()
    member.wait()


def _sizes(running: Cluster) -> tuple[float, float]:
    answer = _maintain(running, "maintenance/status", {})
    return int(answer["dbSize"]) / _MIB, int(answer["dbSizeInUse"]) / _MIB


def _maintain(running: Cluster, path: str, question: dict[str, object]) -> dict[str, object]:
    """Ask one member for what no store of pools asks for."""
    endpoint = Endpoint(*running.endpoints[0], 600, None)
    try:
        return endpoint.ask(path, question)
    finally:
        endpoint.close()


def _median_ms(work: Callable[[], float], times: int = 51) -> float:
    return sorted(work() for _ in range(times))[times // 2] * 1000


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
