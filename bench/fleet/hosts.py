"""Simulated hosts: processes, as hosts are, so that none waits for another's interpreter."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import NamedTuple

from bench.fleet.place import POOL
from nat_rewriter.errors import NatctlError
from nat_rewriter.model.pools import StoreAddress
from nat_rewriter.pool import PoolStore, open_store

_FORK = multiprocessing.get_context("fork")  # the modules are imported once
_PATIENCE_S = 120.0
Work = Callable[[PoolStore, str], float]


class Did(NamedTuple):
    """What one host did: how long each piece of work took, and its processor time in all."""

    host: str
    took_s: list[float]
    processor_s: float


class Fleet(NamedTuple):
    """What all hosts did, and how long the last of them took."""

    seconds: float
    did: list[Did]

    @property
    def took_s(self) -> list[float]:
        """Return how long each piece of work took, the shortest first."""
        return sorted(seconds for each in self.did for seconds in each.took_s)

    @property
    def processor_s(self) -> float:
        """The processor time of all hosts."""
        return sum(each.processor_s for each in self.did)

    def quantile_ms(self, share: float) -> float:
        """Return what so much of the work took at most, in milliseconds."""
        took = self.took_s
        return took[min(len(took) - 1, int(len(took) * share))] * 1000


def run(stores: Sequence[StoreAddress], work: Work, *, times: int = 0, seconds: float = 0.0) -> Fleet:
    """Let as many hosts as stores are named work at once: each so many times, or for so long."""
    ready, answers = _FORK.Barrier(len(stores) + 1), _FORK.Queue()
    processes = [
        _FORK.Process(target=_live, args=(store, f"h{number}", work, times, seconds, ready, answers), daemon=True)
        for number, store in enumerate(stores)
    ]
    for process in processes:
        process.start()
    ready.wait(_PATIENCE_S)
    began = time.monotonic()
    answered = [answers.get(timeout=seconds + _PATIENCE_S) for _ in processes]
    took_s = time.monotonic() - began
    if failed := [each for each in answered if isinstance(each, str)]:
        raise NatctlError("simulate hosts", f"{len(failed)} of {len(stores)} failed", failed[0])
    return Fleet(took_s, answered)


def _live(
    address: StoreAddress, host: str, work: Work, times: int, seconds: float, ready: Barrier, answers: Queue[Did | str]
) -> None:
    took_s = list[float]()
    try:
        with open_store(address) as store:
            ready.wait(_PATIENCE_S)
            end = time.monotonic() + seconds
            while len(took_s) < times or (not times and time.monotonic() < end):
                took_s.append(work(store, host))
    except Exception as error:  # the parent tells it
        answers.put(f"{host}: {error!r}")
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    answers.put(Did(host, took_s, used.ru_utime + used.ru_stime))


def pair(store: PoolStore, host: str) -> float:
    """Take a slice and give it back; return how long the taking took."""
    began = time.perf_counter()
    held = store.acquire(POOL, host, 1)
    took_s = time.perf_counter() - began
    store.release(POOL, host, [each.block for each in held])
    return took_s


def renewal(store: PoolStore, host: str) -> float:
    """Renew what a host holds; return how long that took."""
    began = time.perf_counter()
    store.renew(POOL, host)
    return time.perf_counter() - began
