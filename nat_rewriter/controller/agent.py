"""The agent: holds slices of pools for this host as their use demands, and keeps the kernel to their terms."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from nat_rewriter.config import read_policy
from nat_rewriter.controller.apply import apply_configuration
from nat_rewriter.controller.generations import GenerationLog, Warn
from nat_rewriter.controller.observation import observe
from nat_rewriter.controller.watcher import count_slices
from nat_rewriter.controller.withdrawal import Progress, withdraw
from nat_rewriter.errors import NatctlError, StateError
from nat_rewriter.kernel.terms import Fence
from nat_rewriter.model.findings import Kind
from nat_rewriter.model.generations import Configuration
from nat_rewriter.model.pools import Block, Deed, Demand, Pool
from nat_rewriter.model.watching import SliceUse
from nat_rewriter.pool import PoolStore
from nat_rewriter.pool.demand import next_step
from nat_rewriter.report.pools import slice_text

_LOCK_WAIT_S = 10.0
_MARGIN_SHARE = 0.1  # of a term, at least a second: the kernel stops before the store lets go
_STEPS_IN_A_TERM = 5


@dataclass(slots=True)
class _Held:
    """What this host has of one pool: until when, by the clock that goes on while the host sleeps."""

    pool: Pool
    demand: Demand
    until: dict[Block, float] = field(default_factory=dict)

    def left(self) -> dict[Block, float]:
        """Return what may be used now, and for how many seconds."""
        now = _now()
        return {block: until - now for block, until in self.until.items() if until > now}


class Agent:
    """Renews, takes and gives back slices of the configuration's pools, one ``step`` after the other.

    The kernel is told first: a slice is used once the fence lets it pass, and given back once nothing of it is left.
    While the store is silent, what is held goes on being used until its term ends, in the kernel, with or without the
    agent.
    Raises NatctlError where the first step cannot be done.
    """

    def __init__(
        self, configuration: Configuration, store: PoolStore, log: GenerationLog, host: str,
        tell: Callable[[Deed], None], warn: Warn,
    ) -> None:  # fmt: skip
        self._base, self._store, self._log, self._host = configuration, store, log, host
        self._tell, self._warn = tell, warn
        policy = configuration.policy
        self._held = [_Held(pool, demand) for pool, demand in policy.pools.items()]
        if not self._held:
            raise NatctlError("hold slices", "there is no [[pool]] in the configuration", configuration.source)
        self._applied: frozenset[Block] | None = None
        self._drain: _Drain | None = None
        self._silent = ""
        self._fence = Fence(policy.controller.table, [held.pool for held in self._held])

    def close(self) -> None:
        """Stop looking after what is held; it stays in use until its terms end."""
        if self._drain:
            self._drain.thread.join()
        self._fence.close()

    def begin(self) -> None:
        """Take up what this host holds from before, fence everything else off, and apply."""
        for held in self._held:
            self._renew(held)
        self._fence.raise_up(self._blocks_left())
        self._apply_if_changed()

    @property
    def pause_s(self) -> float:
        """How long to wait between two steps."""
        return min(held.pool.ttl_s for held in self._held) / _STEPS_IN_A_TERM

    def step(self) -> None:
        """Renew; let the kernel know; then take or give back what the use asks for."""
        before = self._all_blocks()
        for held in self._held:
            self._renew(held)
        if before - self._all_blocks():
            self._fence.hold_only(self._blocks_left())
        else:
            self._fence.renew(self._blocks_left())
        self._finish_drain()
        self._apply_if_changed()
        if not self._drain and not self._silent:
            for held, uses in self._uses():
                self._follow(held, uses)

    def follow(self, configuration: Configuration) -> None:
        """Go on by another configuration. Raises NatctlError where its pools are others than before."""
        if configuration.policy.pools.keys() != self._base.policy.pools.keys():
            raise NatctlError("reload", "other pools need a restart of the agent", configuration.source)
        for held in self._held:
            held.demand = configuration.policy.pools[held.pool]
        self._base, self._applied = configuration, None
        self._apply_if_changed()

    def give_back(self) -> None:
        """Withdraw everything that is held of pools, end its flows, and give it back."""
        self._finish_drain(wait=True)
        blocks = {held.pool.name: list(held.until) for held in self._held}
        withdraw(self._configuration(frozenset()), self._log, self._warn, 0, _nobody, _LOCK_WAIT_S)
        self._fence.hold_only([])
        for name, some in blocks.items():
            self._release(name, some)
        self._fence.take_down()

    # holding

    def _renew(self, held: _Held) -> None:
        asked = _now()
        try:
            there = self._store.renew(held.pool.name, self._host)
        except StateError as error:
            self._note_silence(str(error))
            return
        self._note_silence("")
        until = asked + _usable_s(held.pool)
        now_held = {each.block: until for each in there}
        for block in held.until.keys() - now_held.keys():
            self._told("lost", held.pool, block, "its term ended before it was renewed")
        held.until = now_held

    def _take(self, held: _Held, count: int) -> None:
        asked, before = _now(), set(held.until)
        try:
            there = self._store.acquire(held.pool.name, self._host, count)
        except NatctlError as error:
            self._told("refused", held.pool, None, str(error))
            return
        held.until = dict.fromkeys((each.block for each in there), asked + _usable_s(held.pool))
        self._fence.renew(self._blocks_left())
        for block in held.until.keys() - before:
            self._told("acquired", held.pool, block)
        self._apply_if_changed()

    def _release(self, name: str, blocks: Sequence[Block]) -> None:
        for start in range(0, len(blocks), 32):
            self._store.release(name, self._host, blocks[start : start + 32])
        for held in self._held:
            for block in blocks if held.pool.name == name else ():
                held.until.pop(block, None)
                self._told("released", held.pool, block)

    def _follow(self, held: _Held, uses: Sequence[SliceUse]) -> None:
        step = next_step(held.pool, held.demand, uses)
        if step.take:
            self._take(held, min(step.take, 32))
        elif step.give_back and not self._drain:
            (block,) = [each for each in held.until if held.pool.slice_of(each).name == step.give_back]
            self._begin_drain(held, block)

    def _uses(self) -> list[tuple[_Held, list[SliceUse]]]:
        """Return how the slices of each pool are used."""
        policy = self._configuration(self._all_blocks()).policy
        uses = {use.name: use for use in count_slices(observe(policy, {Kind.SLICE_PRESSURE}))}
        return [(held, [uses[held.pool.slice_of(block).name] for block in held.until]) for held in self._held]

    # giving back

    def _begin_drain(self, held: _Held, block: Block) -> None:
        self._told("draining", held.pool, block, f"its flows have {held.demand.drain_s} s to end")
        rest = self._all_blocks() - {block}
        self._drain = _Drain(held.pool, block, self._configuration(rest), self._log, self._warn, held.demand.drain_s)
        self._applied = rest

    def _finish_drain(self, *, wait: bool = False) -> None:
        """Give back what has been withdrawn by now."""
        drain = self._drain
        if drain is None or (drain.thread.is_alive() and not wait):
            return
        drain.thread.join()
        self._drain = None
        if drain.failure:
            self._applied = None
            self._told("failed", drain.pool, drain.block, drain.failure)
            return
        self._fence.hold_only((block, left) for block, left in self._blocks_left() if block != drain.block)
        try:
            self._release(drain.pool.name, [drain.block])
        except StateError as error:
            self._note_silence(str(error))
        except NatctlError as error:  # it was lost meanwhile
            self._told("failed", drain.pool, drain.block, str(error))

    # the kernel

    def _apply_if_changed(self) -> None:
        if self._drain or self._applied == self._all_blocks():
            return
        blocks = self._all_blocks()
        configuration = self._configuration(blocks)
        gone = (self._applied or frozenset()) - blocks
        if gone:  # flows of what was lost have nowhere to go
            withdraw(configuration, self._log, self._warn, 0, _nobody, _LOCK_WAIT_S)
        else:
            apply_configuration(configuration, self._log, self._warn, _LOCK_WAIT_S)
        self._applied = blocks
        self._tell(Deed(datetime.now(UTC), "applied", detail=f"{len(blocks)} slices of pools"))

    def _configuration(self, blocks: Iterable[Block]) -> Configuration:
        """Return the configuration with slices in the place of what is held: complete, and fit to be applied alone."""
        ordered = sorted(blocks, key=lambda block: (block.address.version, block))
        owned = [held.pool.slice_of(block) for block in ordered for held in self._held if block in held.pool]
        text = self._base.text + b"".join(f"\n{slice_text(each)}".encode() for each in owned)
        return replace(self._base, text=text, policy=read_policy(text, self._base.source))

    def _all_blocks(self) -> frozenset[Block]:
        return frozenset(block for held in self._held for block in held.until)

    def _blocks_left(self) -> list[tuple[Block, float]]:
        return [pair for held in self._held for pair in held.left().items()]

    # telling

    def _told(self, what: str, pool: Pool, block: Block | None, detail: str = "") -> None:
        self._tell(Deed(datetime.now(UTC), what, pool.name, block, detail))

    def _note_silence(self, reason: str) -> None:
        """Tell once that the store is silent, and once that it is back."""
        if bool(reason) != bool(self._silent):
            self._tell(Deed(datetime.now(UTC), "store-silent" if reason else "store-back", detail=reason))
        self._silent = reason


class _Drain:
    """A withdrawal under way in a thread of its own, while terms go on being renewed."""

    def __init__(
        self, pool: Pool, block: Block, configuration: Configuration, log: GenerationLog, warn: Warn, seconds: float
    ) -> None:
        self.pool, self.block, self.failure = pool, block, ""
        self._work = functools.partial(withdraw, configuration, log, warn, seconds, _nobody, _LOCK_WAIT_S)
        self.thread = threading.Thread(target=self._run, name="natctl-drain", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except NatctlError as error:
            self.failure = str(error)


def _usable_s(pool: Pool) -> float:
    """Return for how long after it was asked for a term is used."""
    return pool.ttl_s - max(1.0, pool.ttl_s * _MARGIN_SHARE)


def _nobody(progress: Progress) -> None:
    """Tell nobody how far a withdrawal is."""


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
