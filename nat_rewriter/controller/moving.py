"""Moving slices between hosts with the flows in them, each agent its part.

The giver closes its fence for the slice, packs the flows and has the store give slice and flows to the taker at once;
the taker makes the entries and opens its fence. So nobody uses the slice in between, and packets that come then are
lost as if on the way: their senders repeat them. Where the store does not answer, the giver's fence stays closed until
it is known whose the slice is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from nat_rewriter.controller.generations import Warn
from nat_rewriter.controller.holdings import Held, Holdings
from nat_rewriter.controller.moved import end_socket_flows, movable_flows, refuse_strangers
from nat_rewriter.errors import NatctlError, StateError
from nat_rewriter.kernel.moved_flows import insert_flows, let_flows_end
from nat_rewriter.model.flows import Flow, flow_from_record
from nat_rewriter.model.moves import Count, Move, Stage
from nat_rewriter.model.pools import Block
from nat_rewriter.report.parcels import pack_flows, unpack_flows

# For so long the giver's entries stay, behind a closed fence: a packet that still comes there is dropped, and not taken
# for the first of a flow that another port would be found for.
LINGER_S = 60
_SHOWN = 10


class _Doubt(NamedTuple):
    """A move of which the store has not said whether it was made, and what it said."""

    move: Move
    held: Held
    reason: str


class Moving:
    """The moves that this host takes part in; each ``look`` brings them on by a stage.

    ``apply`` makes the kernel match what is held. ``leaving``: blocks that are to be withdrawn without an end to their
    flows, which go on elsewhere.
    """

    def __init__(self, holdings: Holdings, apply: Callable[[], None], warn: Warn) -> None:
        self._holdings, self._apply, self._warn = holdings, apply, warn
        self._moves, self._host = holdings.store.moves, holdings.host
        self._alarm = self._moves.alarm()
        self._awaited: set[Block] = set()
        self._doubts: dict[str, _Doubt] = {}
        self.leaving: set[Block] = set()
        self.under_way = False
        self._changed = True
        self._ended_at = math.inf

    def begin(self) -> None:
        """Take back what an agent of this host before has begun to give; wait with what it was to take.

        Before anything is let through: what that agent asked the store for may yet be done, until it is taken back.
        Raises StateError.
        """
        mine = self._mine()
        for move in mine:
            held = self._holdings.of(move.pool)
            if move.giver == self._host and move.stage in (Stage.ASKED, Stage.READY):
                self._moves.answer(move.at(Stage.REFUSED, f"the agent of {self._host} was started anew"))
            elif move.giver == self._host and move.stage is not Stage.REFUSED and held:
                self._let_end(move, held)
        self._await(mine)

    def look(self, *, busy: bool) -> None:
        """Bring every move on as far as it goes now; agree to none while ``busy``. Raises NatctlError: look again."""
        if self._holdings.silent:
            return
        try:
            self._changed = self._alarm.rung() or self._changed
            if not (self._changed or self.under_way or self._doubts):
                return
            for doubt in tuple(self._doubts.values()):
                self._settle(doubt)
            mine = self._mine()
            self.under_way = any(not move.stage.is_last for move in mine)
            self._await(mine)
            for move in mine:
                self._bring_on(move, busy)
            self._changed = False
        except StateError as error:
            self._holdings.note_silence(str(error))

    def flows_have_ended(self) -> bool:
        """Tell once that entries are gone which made the guard look at every packet."""
        if time.monotonic() < self._ended_at:
            return False
        self._ended_at = math.inf
        return True

    def _mine(self) -> list[Move]:
        return [move for move in self._moves.under_way() if self._host in (move.giver, move.taker)]

    def _await(self, moves: Sequence[Move]) -> None:
        """Let nothing of blocks through that are to come, until their flows have."""
        coming = {move.block for move in moves if move.taker == self._host and not move.stage.is_last}
        for held in self._holdings.of_pools:
            held.closed |= {block for block in coming if block in held.pool}
            held.closed -= self._awaited - coming
        self._awaited = coming

    def _bring_on(self, move: Move, busy: bool) -> None:
        held = self._holdings.of(move.pool)
        if move.stage is Stage.ASKED:
            self._reply(move, held, busy)
        elif move.stage is Stage.READY and move.giver == self._host and held and move.token not in self._doubts:
            self._give(move, held)
        elif move.stage is Stage.MOVED and move.taker == self._host and held:
            self._take(move, held)
        elif move.stage is Stage.DONE and move.block in self.leaving:
            self._apply()
            self.leaving.discard(move.block)

    def _reply(self, move: Move, held: Held | None, busy: bool) -> None:
        """Say why not; or, as the taker, that it can begin."""
        reason = "the agent is giving back another slice" if busy else ""
        if held is None or move.block not in held.pool:
            reason = f"the configuration of {self._host} has no such pool"
        elif move.giver == self._host and move.block not in held.until:
            reason = f"{self._host} does not hold it"
        elif move.giver == self._host and move.block in held.quarantined:
            reason = f"{self._host} does not use it yet: it is in quarantine"
        elif move.taker == self._host and len(held.until) >= held.pool.per_host:
            reason = f"{self._host} holds {len(held.until)} slices, and may hold no more (per_host)"
        if reason:
            self._moves.answer(move.at(Stage.REFUSED, reason))
        elif move.taker == self._host:
            self._moves.answer(move.at(Stage.READY))

    # giving

    def _give(self, move: Move, held: Held) -> None:
        try:
            after = self._closed(move, held)
        except NatctlError as error:
            self._keep(move, held, str(error))
            with suppress(StateError):
                self._moves.answer(move.at(Stage.REFUSED, str(error)))
            return
        try:
            self._holdings.store.transfer(move.pool, move.block, self._host, move.taker, after)
        except NatctlError as error:  # a refusal, too, may be that of a change that was made and asked for again
            self._doubts[move.token] = _Doubt(after, held, str(error))
            return
        self._let_go(after, held)

    def _closed(self, move: Move, held: Held) -> Move:
        """Close the fence and put the flows down for the taker; return the move as it is after that."""
        if move.block not in held.left():
            raise NatctlError("transfer", f"{self._host} does not hold it", move.block)
        owned = held.pool.slice_of(move.block)
        ended = end_socket_flows(owned, self._warn)
        self.leaving.add(move.block)
        held.closed.add(move.block)
        self._holdings.let_only()
        self._holdings.told("closed", held.pool, move.block, f"it goes to {move.taker}")
        flows, left_out = movable_flows(owned)
        self._moves.pack(move, pack_flows(flows))
        return move.at(Stage.MOVED, _listed(ended), Count(len(flows), len(ended), left_out))

    def _let_go(self, move: Move, held: Held) -> None:
        """Go on without a block that is another host's now; it is withdrawn when that host has it, or a step later."""
        self._doubts.pop(move.token, None)
        held.until.pop(move.block, None)
        held.closed.discard(move.block)
        self._let_end(move, held)
        self._holdings.told("moved", held.pool, move.block, f"{move.count.sent} flows to {move.taker}")

    def _let_end(self, move: Move, held: Held) -> None:
        flows, _ = movable_flows(held.pool.slice_of(move.block))
        let_flows_end([flow_from_record(each) for each in flows], LINGER_S)
        self._ended_at = time.monotonic() + LINGER_S + 1

    def _keep(self, move: Move, held: Held, reason: str) -> None:
        """Go on with a block that is this host's still."""
        self._doubts.pop(move.token, None)
        self.leaving.discard(move.block)
        if move.block in held.closed:
            held.closed.discard(move.block)
            self._holdings.let_through()
        self._holdings.told("kept", held.pool, move.block, reason)

    def _settle(self, doubt: _Doubt) -> None:
        """Find out whose a block is, after the store has not said what became of its move."""
        move, held, reason = doubt
        there = {each.token: each for each in self._moves.under_way()}.get(move.token)
        if there and there.stage is Stage.READY and not self._moves.answer(there.at(Stage.REFUSED, reason)):
            return
        # From here on nobody can give it away any more: what the store says now is so.
        if move.block in {each.block for each in self._holdings.store.renew(move.pool, self._host)}:
            self._keep(move, held, reason)
        else:
            self._let_go(move, held)

    # taking

    def _take(self, move: Move, held: Held) -> None:
        self._holdings.renew(held)
        if move.block not in held.until:
            if not self._holdings.silent:
                self._moves.answer(move.at(Stage.DONE, f"{self._host} came too late: its term has ended"))
            return
        count = self._made(move, held)
        held.closed.discard(move.block)
        self._holdings.let_through()
        self._apply()
        self.leaving.discard(move.block)
        self._moves.answer(move.at(Stage.DONE, move.detail, count))
        detail = f"{count.sent - count.clashed} flows from {move.giver}"
        self._holdings.told("taken-over", held.pool, move.block, detail)

    def _made(self, move: Move, held: Held) -> Count:
        """Make the entries of the flows; where that fails the slice is taken without them. Raises StateError."""
        try:
            flows = unpack_flows(self._moves.unpack(move))
            refuse_strangers(flows, (held.pool.slice_of(move.block),))
            return move.count._replace(clashed=len(insert_flows(flows)))
        except StateError:
            raise
        except NatctlError as error:
            self._holdings.told("failed", held.pool, move.block, str(error))
            return move.count._replace(clashed=move.count.sent)


def _listed(flows: Sequence[Flow]) -> str:
    """Return flows as a sentence has them, the first ones where there are many."""
    shown = ", ".join(str(each.original) for each in flows[:_SHOWN])
    return f"{shown} and {len(flows) - _SHOWN} more" if len(flows) > _SHOWN else shown
