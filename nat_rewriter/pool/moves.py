"""What a store of pools knows of slices on their way from one host to another.

::

    announce -> ASKED -> READY -> (PoolStore.transfer) MOVED -> DONE
                  └────────┴──> REFUSED

Each step is made by one side, and only from the state that it has seen: the loser of a race finds out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from nat_rewriter.errors import NatctlError
from nat_rewriter.model.moves import MOST_PACKED, Move
from nat_rewriter.model.pools import Block, Pool


class Alarm(ABC):
    """Tells when it is time to ask for moves, so that hosts need not ask again and again."""

    @abstractmethod
    def rung(self) -> bool:
        """Tell whether moves may have changed since this was asked last; the first time they may have.

        Raises StateError where the store cannot be asked.
        """


class Moves(ABC):
    """The announcements of moves, which end by themselves. Raises StateError where the store cannot be asked."""

    @abstractmethod
    def announce(self, pool: Pool, block: Block, giver: str, taker: str) -> Move:
        """Ask both hosts to move a block. Raises NatctlError where it is on its way already."""

    @abstractmethod
    def under_way(self) -> list[Move]:
        """Return the moves of all pools, those that have just ended too."""

    @abstractmethod
    def alarm(self) -> Alarm:
        """Begin to listen for changes."""

    @abstractmethod
    def answer(self, after: Move) -> bool:
        """Bring a move to another stage, if it is still at the version that was seen; tell whether it was."""

    @abstractmethod
    def pack(self, move: Move, flows: bytes) -> None:
        """Put down what the taker is to fetch, until the move ends."""

    @abstractmethod
    def unpack(self, move: Move) -> bytes:
        """Return what the giver has put down."""


def refuse_unfinished(there: Move) -> None:
    """Raise NatctlError for a block that is on its way."""
    if not there.stage.is_last:
        raise NatctlError("transfer", f"it is on its way from {there.giver} to {there.taker}", there.block)


def refuse_large(flows: bytes) -> None:
    """Raise NatctlError for more than a store is to keep."""
    if len(flows) > MOST_PACKED:
        raise NatctlError("transfer", f"at most {MOST_PACKED} bytes of flows, packed", len(flows))


def overtaken(block: Block) -> NatctlError:
    """Return the error of a move that is not at the stage any more from which it was to go on."""
    return NatctlError("transfer", "the move was taken back meanwhile", block)
