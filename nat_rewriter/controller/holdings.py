"""What this host holds of the pools: asked of the store, and let through by the kernel for as long as it lasts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from nat_rewriter.errors import NatctlError, StateError
from nat_rewriter.kernel.terms import Fence
from nat_rewriter.model.pools import Block, Deed, Demand, Holding, Pool
from nat_rewriter.pool import PoolStore
from nat_rewriter.pool.store import MOST_AT_ONCE

_OTHER_TERMS = (
    "the store has other terms than the configuration (natctl pool show): restart the agent with those of the store"
)
_LOST = "its term ended before it was renewed"
_LOST_EARLY = "the store has let go of it before its term ended"
_QUARANTINE = "its last holder has not given it back, and may be using it until then"
_MARGIN_SHARE = 0.1  # of a term, at least a second: the kernel stops before the store lets go


@dataclass(slots=True)
class Held:
    """What this host has of one pool: until when, by the clock that goes on while the host sleeps.

    ``closed`` are blocks that the kernel is not to let through, though they are held or about to be: they are on their
    way from this host, or to it. ``quarantined`` are those that are held and not used at all yet: nobody has given them
    back, so somebody may be using them for as long as his term lasts.
    """

    pool: Pool
    demand: Demand
    until: dict[Block, float] = field(default_factory=dict)
    closed: set[Block] = field(default_factory=set)
    quarantined: set[Block] = field(default_factory=set)
    term_s: float = 0.0  # as the store had it last
    fault: str = ""  # why it is no use to ask the store for more, as far as that was told

    @property
    def renewed_within_s(self) -> float:
        """How long the terms of this pool are."""
        return self.term_s or self.pool.ttl_s

    def in_use(self) -> set[Block]:
        """Return what is held, but for what is in quarantine."""
        return self.until.keys() - self.quarantined

    def left(self) -> dict[Block, float]:
        """Return what may be used now, and for how many seconds."""
        now, barred = _now(), self.closed | self.quarantined
        return {block: until - now for block, until in self.until.items() if until > now and block not in barred}


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
        self.in_vain = 0  # times in a row that nothing was held and nothing could be had
        self._tell = tell
        self._fence = Fence(table, list(pools))
        self._lost = False  # something that the fence may still let through

    def close(self) -> None:
        """Stop looking after what is held; it stays in use until its terms end."""
        self._fence.close()

    def of(self, name: str) -> Held | None:
        """Return what is held of the pool of that name, None where it is none of this host's."""
        return next((held for held in self.of_pools if held.pool.name == name), None)

    def blocks(self) -> frozenset[Block]:
        """Return all blocks that are held."""
        return frozenset(block for held in self.of_pools for block in held.until)

    def in_use(self) -> frozenset[Block]:
        """Return all blocks that are held, but for those in quarantine."""
        return frozenset(block for held in self.of_pools for block in held.in_use())

    # with the store

    def renew(self, held: Held) -> None:
        """Begin a full term for what is held of a pool; tell what is held no more. Raises NatctlError: no such pool."""
        asked = _now()
        try:
            there = self.store.renew(held.pool.name, self.host)
        except StateError as error:
            self.note_silence(str(error))
            return
        self.note_silence("")
        self._go_by(held, asked, there)

    def renew_all(self) -> None:
        """Begin a full term for all that is held, with the store and then in the kernel."""
        for held in self.of_pools:
            try:
                self.renew(held)
            except NatctlError as error:  # the pool is gone: what is held of it ends with its term, in the kernel too
                self._note_fault(held, str(error))
        self.let_through()

    def take(self, held: Held, count: int) -> bool:
        """Take so many more blocks of a pool, and let them through; tell whether they could be had."""
        asked = _now()
        try:
            self._refuse_other_terms(held.pool)
            there = self.store.acquire(held.pool.name, self.host, min(count, MOST_AT_ONCE))
        except NatctlError as error:
            self.told("refused", held.pool, None, str(error))
            self._count_vain()
            return False
        for each in there:
            if each.block not in held.until:
                self.told("acquired", held.pool, each.block)
        self._go_by(held, asked, there)
        self.in_vain = 0
        self.let_through()
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
        self._lost = False

    def let_through(self) -> None:
        """Let what is held through; what is not is let through no longer than it was, what was lost not at all."""
        if self._lost:
            self.let_only()
        else:
            self._fence.renew(self._blocks_left())

    def let_only(self, but: Block | None = None) -> None:
        """Let through what is held and nothing else, and not the one block."""
        self._fence.hold_only((block, left) for block, left in self._blocks_left() if block != but)
        self._lost = False

    def let_nothing(self) -> None:
        """Let nothing through."""
        self._fence.hold_only([])

    def _blocks_left(self) -> Iterator[tuple[Block, float]]:
        for held in self.of_pools:
            yield from held.left().items()

    # terms

    def _go_by(self, held: Held, asked: float, there: Sequence[Holding]) -> None:
        """Go by what the store says is held of a pool; tell what is held no more, and what is not used yet."""
        before, in_use, now = held.until, held.in_use(), _now()
        held.until = self._usable_until(held, asked, there)
        for block in before.keys() - held.until.keys():
            self.told("lost", held.pool, block, _LOST if before[block] <= now else _LOST_EARLY)
        waiting = {each.block: each.quarantine_s for each in there if each.quarantine_s and each.block in held.until}
        for block in waiting.keys() - held.quarantined:
            self.told("quarantined", held.pool, block, f"not used for {waiting[block]:.0f} s: {_QUARANTINE}")
        for block in (held.quarantined - waiting.keys()) & held.until.keys():
            self.told("usable", held.pool, block, "its quarantine is over")
        held.quarantined = set(waiting)
        self._lost = self._lost or not in_use <= held.in_use()

    def _usable_until(self, held: Held, asked: float, there: Sequence[Holding]) -> dict[Block, float]:
        """Return what of a host's blocks is used, and until when by the store's own terms; tell of what is not."""
        strangers = held.pool.strangers(each.block for each in there)
        self._note_fault(held, f"{_OTHER_TERMS}; held and not used: {strangers[0]}" if strangers else "")
        held.term_s = min((each.left_s for each in there), default=0.0)
        return {each.block: asked + _usable_s(each.left_s) for each in there if each.block not in strangers}

    def _refuse_other_terms(self, pool: Pool) -> None:
        """Raise NatctlError where the store might give a block that the configuration does not know."""
        known = {each.name: each for each in self.store.pools()}
        if pool.name in known and not pool.covers(known[pool.name]):
            raise NatctlError("acquire", _OTHER_TERMS, pool.name)

    def _count_vain(self) -> None:
        holds = any(held.left() or held.quarantined for held in self.of_pools)
        self.in_vain = 0 if holds else self.in_vain + 1

    # telling

    def _note_fault(self, held: Held, reason: str) -> None:
        """Tell once of a pool that is not, or is no longer, as the configuration has it."""
        if reason and reason != held.fault:
            self.told("failed", held.pool, None, reason)
        held.fault = reason

    def told(self, what: str, pool: Pool, block: Block | None, detail: str = "") -> None:
        """Tell a deed."""
        self._tell(Deed(datetime.now(UTC), what, pool.name, block, detail))

    def note_silence(self, reason: str) -> None:
        """Tell once that the store is silent, and once that it is back."""
        if bool(reason) != bool(self.silent):
            self._tell(Deed(datetime.now(UTC), "store-silent" if reason else "store-back", detail=reason))
        if reason:
            self._count_vain()
        self.silent = reason


def _usable_s(term_s: float) -> float:
    """Return for how long after it was asked for a term of the store's is used."""
    return term_s - max(1.0, term_s * _MARGIN_SHARE)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
