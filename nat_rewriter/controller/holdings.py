"""What this host holds of the pools: asked of the store, and let through by the kernel for as long as it lasts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from nat_rewriter.errors import NatctlError, StateError
from nat_rewriter.kernel.terms import Fence
from nat_rewriter.model.pools import Block, Deed, Demand, Pool
from nat_rewriter.pool import PoolStore
from nat_rewriter.pool.store import MOST_AT_ONCE

_MARGIN_SHARE = 0.1  # of a term, at least a second: the kernel stops before the store lets go


@dataclass(slots=True)
class Held:
    """What this host has of one pool: until when, by the clock that goes on while the host sleeps.

    ``closed`` are blocks that the kernel is not to let through, though they are held or about to be: they are on their
    way from this host, or to it.
    """

    pool: Pool
    demand: Demand
    until: dict[Block, float] = field(default_factory=dict)
    closed: set[Block] = field(default_factory=set)

    def left(self) -> dict[Block, float]:
        """Return what may be used now, and for how many seconds."""
        now = _now()
        return {block: until - now for block, until in self.until.items() if until > now and block not in self.closed}


class Holdings:
    """The blocks of this host, pool by pool. What changes them is told as deeds.

    While the store is silent, what is held goes on being used until its term ends, in the kernel, with or without this
    process.
    """

    def __init__(
        self, pools: Mapping[Pool, Demand], table: str, store: PoolStore, host: str, tell: Callable[[Deed], None]
    ) -> None:
        self.of_pools = [Held(pool, demand) for pool, demand in pools.items()]
        self.host, self.store = host, store
        self.silent = ""
        self._tell = tell
        self._fence = Fence(table, list(pools))

    def close(self) -> None:
        """Stop looking after what is held; it stays in use until its terms end."""
        self._fence.close()

    def of(self, name: str) -> Held | None:
        """Return what is held of the pool of that name, None where it is none of this host's."""
        return next((held for held in self.of_pools if held.pool.name == name), None)

    def blocks(self) -> frozenset[Block]:
        """Return all blocks that are held."""
        return frozenset(block for held in self.of_pools for block in held.until)

    # with the store

    def renew(self, held: Held) -> None:
        """Begin a full term for what is held of a pool; tell what is held no more."""
        asked = _now()
        try:
            there = self.store.renew(held.pool.name, self.host)
        except StateError as error:
            self.note_silence(str(error))
            return
        self.note_silence("")
        until = asked + _usable_s(held.pool)
        now_held = {each.block: until for each in there}
        for block in held.until.keys() - now_held.keys():
            self.told("lost", held.pool, block, "its term ended before it was renewed")
        held.until = now_held

    def renew_all(self) -> None:
        """Begin a full term for all that is held, with the store and then in the kernel."""
        before = self.blocks()
        for held in self.of_pools:
            self.renew(held)
        if before - self.blocks():
            self.let_only()
        else:
            self.let_through()

    def take(self, held: Held, count: int) -> bool:
        """Take so many more blocks of a pool, and let them through; tell whether they could be had."""
        asked, before = _now(), set(held.until)
        try:
            there = self.store.acquire(held.pool.name, self.host, min(count, MOST_AT_ONCE))
        except NatctlError as error:
            self.told("refused", held.pool, None, str(error))
            return False
        held.until = dict.fromkeys((each.block for each in there), asked + _usable_s(held.pool))
        self.let_through()
        for block in held.until.keys() - before:
            self.told("acquired", held.pool, block)
        return True

    def release(self, held: Held, blocks: Sequence[Block]) -> None:
        """Give blocks back to the store. Raises StateError, NatctlError as the store does."""
        for start in range(0, len(blocks), MOST_AT_ONCE):
            self.store.release(held.pool.name, self.host, blocks[start : start + MOST_AT_ONCE])
        for block in blocks:
            held.until.pop(block, None)
            self.told("released", held.pool, block)

    # in the kernel

    def raise_fence(self) -> None:
        """Fence everything off that is not held."""
        self._fence.raise_up(self._blocks_left())

    def let_through(self) -> None:
        """Let what is held through; what is not is let through no longer than it was."""
        self._fence.renew(self._blocks_left())

    def let_only(self, but: Block | None = None) -> None:
        """Let through what is held and nothing else, and not the one block."""
        self._fence.hold_only((block, left) for block, left in self._blocks_left() if block != but)

    def let_nothing(self) -> None:
        """Let nothing through."""
        self._fence.hold_only([])

    def take_fence_down(self) -> None:
        """Take the kernel's part away: for a host that goes on without pools."""
        self._fence.take_down()

    def _blocks_left(self) -> Iterator[tuple[Block, float]]:
        for held in self.of_pools:
            yield from held.left().items()

    # telling

    def told(self, what: str, pool: Pool, block: Block | None, detail: str = "") -> None:
        """Tell a deed."""
        self._tell(Deed(datetime.now(UTC), what, pool.name, block, detail))

    def note_silence(self, reason: str) -> None:
        """Tell once that the store is silent, and once that it is back."""
        if bool(reason) != bool(self.silent):
            self._tell(Deed(datetime.now(UTC), "store-silent" if reason else "store-back", detail=reason))
        self.silent = reason


def _usable_s(pool: Pool) -> float:
    """Return for how long after it was asked for a term is used."""
    return pool.ttl_s - max(1.0, pool.ttl_s * _MARGIN_SHARE)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
