"""The nft table by which the kernel keeps a host to the terms of its slices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nat_rewriter.kernel.nft import KernelNft
from nat_rewriter.model.pools import Block, Pool
from nat_rewriter.render.terms import TURNS, render_terms, renewal, terms_table_name, versions


class Fence(KernelNft):
    """Lets packets from ports of pools pass for as long as they are held, in the namespace in which it is made.

    ``table`` is the controller's; no other table is read or changed than the one beside it.
    """

    def __init__(self, table: str, pools: Sequence[Pool]) -> None:
        super().__init__()
        self._table, self._pools, self._turns = table, tuple(pools), 0

    def raise_up(self, held: Iterable[tuple[Block, float]]) -> None:
        """Put the table in place, in one transaction with what is held now, and for how many seconds."""
        name = terms_table_name(self._table)
        text = render_terms(self._pools, self._table)
        lines = [f"add table inet {name}", f"delete table inet {name}", text, self._renewal(held)]
        self._ask("load ruleset", text="\n".join(lines))

    def renew(self, held: Iterable[tuple[Block, float]]) -> None:
        """Hold blocks for so many seconds from now on; what is not among them is held no longer than it was."""
        self._ask("load ruleset", text=self._renewal(held))

    def hold_only(self, held: Iterable[tuple[Block, float]]) -> None:
        """The same, and everything else is held no more."""
        blocks = list(held)
        self._ask("load ruleset", text="\n".join([self._renewal(blocks), self._renewal(blocks)]))

    def take_down(self) -> None:
        """Take the table away; none there is no error."""
        name = terms_table_name(self._table)
        self._ask("delete table", text=f"add table inet {name}\ndelete table inet {name}")

    def _renewal(self, held: Iterable[tuple[Block, float]]) -> str:
        self._turns += 1
        owners = [(block, pool, seconds) for block, seconds in held for pool in self._pools if block in pool]
        return renewal(self._table, TURNS[self._turns % len(TURNS)], owners, versions(self._pools))
