"""Moves: a slice of a pool that goes from one host to another with the flows in it."""

from __future__ import annotations

import enum
import json
import secrets
from dataclasses import dataclass, replace
from typing import NamedTuple

from nat_rewriter.model.pools import Block

LASTS_S = 20  # an announcement, besides a term: for the hosts to see it, and for their agents to be started again
MOST_PACKED = 32 << 20  # bytes: some half a million flows


class Stage(enum.Enum):
    """How far a move is."""

    ASKED = "asked"  # somebody wants it
    READY = "ready"  # the taker waits for it
    MOVED = "moved"  # the slice is the taker's, which has to fetch the flows
    DONE = "done"  # the taker uses it
    REFUSED = "refused"  # by the taker, the giver, or whoever asked; nothing has changed

    @property
    def is_last(self) -> bool:
        """Whether nothing comes after it."""
        return self in (Stage.DONE, Stage.REFUSED)


class Count(NamedTuple):
    """Flows of a slice that moves: sent to the taker; of sockets, ended; left out; and not taken by the taker's kernel.

    Left out is what has a helper of conntrack: its state cannot be carried.
    """

    sent: int = 0
    sockets: int = 0
    left_out: int = 0
    clashed: int = 0


NOTHING_COUNTED = Count()


@dataclass(frozen=True, slots=True)
class Move:
    """An announced move: ``token`` tells it from others of the block.

    ``version``: which state of it this is, by the store's own count.
    """

    pool: str
    block: Block
    giver: str
    taker: str
    token: str
    stage: Stage = Stage.ASKED
    detail: str = ""
    count: Count = NOTHING_COUNTED
    version: int = 0

    @classmethod
    def new(cls, pool: str, block: Block, giver: str, taker: str) -> Move:
        """Return a move that nobody has heard of yet."""
        return cls(pool, block, giver, taker, secrets.token_hex(8))

    def at(self, stage: Stage, detail: str = "", count: Count | None = None) -> Move:
        """Return the move at a later stage; its version stays that of the state before."""
        return replace(self, stage=stage, detail=detail, count=self.count if count is None else count)


def move_text(move: Move) -> str:
    """Return what a store keeps of a move, besides its pool and block."""
    return json.dumps([move.giver, move.taker, move.token, move.stage.value, move.detail, move.count])


def move_from(pool: str, block: Block, text: str | bytes, version: int) -> Move:
    """Return the move that a store keeps."""
    giver, taker, token, stage, detail, count = json.loads(text)
    return Move(pool, block, giver, taker, token, Stage(stage), detail, Count(*count), version)
