"""The agent: holds slices of pools for this host as their use demands, and keeps the kernel to their terms."""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from nat_rewriter.config import read_policy
from nat_rewriter.controller.apply import apply_configuration
from nat_rewriter.controller.generations import GenerationLog, Warn
from nat_rewriter.controller.holdings import Held, Holdings
from nat_rewriter.controller.moving import Moving
from nat_rewriter.controller.observation import observe
from nat_rewriter.controller.watcher import count_slices
from nat_rewriter.controller.withdrawal import Progress, withdraw
from nat_rewriter.errors import NatctlError, NftError, StateError
from nat_rewriter.model.findings import Kind
from nat_rewriter.model.generations import Configuration
from nat_rewriter.model.pools import Block, Deed
from nat_rewriter.model.watching import SliceUse
from nat_rewriter.pool import PoolStore
from nat_rewriter.pool.demand import next_step, pause_in_vain_s
from nat_rewriter.report.pools import slice_text

_LOCK_WAIT_S = 10.0
_STEPS_IN_A_TERM = 5
_SOONEST_STEP = 0.8  # of the time between two
_LOOK_S, _LOOK_IN_A_MOVE_S = 0.25, 0.02


class Agent:
    """Renews, takes and gives back slices of the configuration's pools, one ``step`` after the other.

    The kernel is told first: a slice is used once the fence lets it pass, and given back once nothing of it is left.
    Raises NatctlError where the first step cannot be done.
    """

    def __init__(
        self, configuration: Configuration, store: PoolStore, log: GenerationLog, host: str,
        tell: Callable[[Deed], None], warn: Warn,
    ) -> None:  # fmt: skip
        self._base, self._log, self._tell, self._warn = configuration, log, tell, warn
        policy = configuration.policy
        self._holdings = Holdings(policy.pools, policy.controller.table, store, host, tell)
        self._moving = Moving(self._holdings, self._apply_if_changed, warn)
        self._chance = random.Random()
        self._begun = False
        self._applied: frozenset[Block] | None = None
        self._drain: _Drain | None = None

    def close(self) -> None:
        """Stop looking after what is held; it stays in use until its terms end."""
        if self._drain:
            self._drain.thread.join()
        self._holdings.close()

    def begin(self) -> None:
        """Take up what this host holds from before, fence everything else off, and apply."""
        self._begun = self._take_up()
        self._holdings.raise_fence()
        self._apply_if_changed()

    def _take_up(self) -> bool:
        """Learn from the store what this host holds from before; tell whether it could be asked."""
        try:
            self._moving.begin()
        except StateError as error:
            self._holdings.note_silence(str(error))
            return False
        for held in self._holdings.of_pools:
            self._holdings.renew(held)
        return True

    @property
    def pause_s(self) -> float:
        """How long to wait between two steps: by chance, so that hosts that began together do not ask together."""
        step_s = min(held.renewed_within_s for held in self._holdings.of_pools) / _STEPS_IN_A_TERM
        if self._holdings.in_vain:
            return pause_in_vain_s(step_s, self._holdings.in_vain, self._chance)
        return step_s * self._chance.uniform(_SOONEST_STEP, 1.0)

    def look(self) -> float:
        """Bring moves of slices on that other hosts wait for; return the seconds until the next look is due."""
        self._moving.look(busy=self._drain is not None)
        return _LOOK_IN_A_MOVE_S if self._moving.under_way else _LOOK_S

    def step(self) -> None:
        """Renew; let the kernel know; then take or give back what the use asks for."""
        self._begun = self._begun or self._take_up()
        if not self._begun:
            return
        self.look()
        self._renew()
        self._finish_drain()
        if self._moving.flows_have_ended():
            self._applied = None
        self._apply_if_changed()
        if not self._drain and not self._moving.under_way and not self._holdings.silent:
            for held, uses in self._uses():
                self._follow(held, uses)

    def _renew(self) -> None:
        """Renew what is held; where somebody has emptied the kernel's tables, put everything in place again."""
        try:
            self._holdings.renew_all()
        except NftError:
            self._holdings.raise_fence()
            self._applied = None

    def follow(self, configuration: Configuration) -> None:
        """Go on by another configuration. Raises NatctlError where its pools are others than before."""
        if configuration.policy.pools.keys() != self._base.policy.pools.keys():
            raise NatctlError("reload", "other pools need a restart of the agent", configuration.source)
        for held in self._holdings.of_pools:
            held.demand = configuration.policy.pools[held.pool]
        self._base, self._applied = configuration, None
        self._apply_if_changed()

    def give_back(self) -> None:
        """Withdraw everything that is held of pools, end its flows, and give it back.

        The fence stays, and lets nothing through: this host may have the shared addresses still, and would answer what
        another host hands over that does not know yet. ``natctl remove`` takes it away.
        """
        self._finish_drain(wait=True)
        withdraw(self._configuration(frozenset()), self._log, self._warn, 0, _nobody, _LOCK_WAIT_S)
        self._holdings.let_nothing()
        for held in self._holdings.of_pools:
            self._holdings.renew(held)  # a term may have ended meanwhile
            self._holdings.release(held, list(held.until))

    # as the use demands

    def _follow(self, held: Held, uses: Sequence[SliceUse]) -> None:
        step = next_step(held.pool, held.demand, uses)
        if step.take and self._holdings.take(held, step.take):
            self._apply_if_changed()
        elif step.give_back and not self._drain:
            (block,) = [each for each in held.until if held.pool.slice_of(each).name == step.give_back]
            self._begin_drain(held, block)

    def _uses(self) -> list[tuple[Held, list[SliceUse]]]:
        """Return how the slices of each pool are used."""
        policy = self._configuration(self._holdings.blocks()).policy
        uses = {use.name: use for use in count_slices(observe(policy, {Kind.SLICE_PRESSURE}))}
        return [
            (held, [uses[held.pool.slice_of(block).name] for block in held.until]) for held in self._holdings.of_pools
        ]

    # giving back

    def _begin_drain(self, held: Held, block: Block) -> None:
        self._holdings.told("draining", held.pool, block, f"its flows have {held.demand.drain_s} s to end")
        rest = self._holdings.in_use() - {block}
        self._drain = _Drain(held, block, self._configuration(rest), self._log, self._warn)
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
            self._holdings.told("failed", drain.held.pool, drain.block, drain.failure)
            return
        self._holdings.let_only(but=drain.block)
        try:
            self._holdings.release(drain.held, [drain.block])
        except StateError as error:
            self._holdings.note_silence(str(error))
        except NatctlError as error:  # it was lost meanwhile
            self._holdings.told("failed", drain.held.pool, drain.block, str(error))

    # the kernel

    def _apply_if_changed(self) -> None:
        blocks = self._holdings.in_use()
        if self._drain or self._applied == blocks:
            return
        configuration = self._configuration(blocks)
        gone = (self._applied or frozenset()) - blocks - self._moving.leaving
        if gone:  # flows of what was lost have nowhere to go
            withdraw(configuration, self._log, self._warn, 0, _nobody, _LOCK_WAIT_S)
        else:
            apply_configuration(configuration, self._log, self._warn, _LOCK_WAIT_S)
        self._applied = blocks
        self._tell(Deed(datetime.now(UTC), "applied", detail=f"{len(blocks)} slices of pools"))

    def _configuration(self, blocks: Iterable[Block]) -> Configuration:
        """Return the configuration with slices in the place of what is held: complete, and fit to be applied alone."""
        ordered = sorted(blocks, key=lambda block: (block.address.version, block))
        pools = [held.pool for held in self._holdings.of_pools]
        owned = [pool.slice_of(block) for block in ordered for pool in pools if block in pool]
        text = self._base.text + b"".join(f"\n{slice_text(each)}".encode() for each in owned)
        return replace(self._base, text=text, policy=read_policy(text, self._base.source))


class _Drain:
    """A withdrawal under way in a thread of its own, while terms go on being renewed."""

    def __init__(self, held: Held, block: Block, configuration: Configuration, log: GenerationLog, warn: Warn) -> None:
        self.held, self.block, self.failure = held, block, ""
        self._work = functools.partial(
            withdraw, configuration, log, warn, held.demand.drain_s, _nobody, wait_s=_LOCK_WAIT_S
        )
        self.thread = threading.Thread(target=self._run, name="natctl-drain", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except NatctlError as error:
            self.failure = str(error)


def _nobody(progress: Progress) -> None:
    """Tell nobody how far a withdrawal is."""
