"""The nft table by which the kernel keeps a host to the terms of its slices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nat_rewriter.kernel.nft import KernelNft
from nat_rewriter.model.pools import Block, Pool
from nat_rewriter.render.terms import (
    TURNS,
    make_ticket,
    make_ticket_set,
    render_terms,
    renewal,
    terms_table_name,
    use_ticket,
    versions,
)

_TICKET_S = 0.5  # half the second, at least, by which the kernel stops before the store lets go


class Fence(KernelNft):
    """Lets packets from ports of pools pass for as long as they are held, in the namespace in which it is made.

    ``table`` is the controller's; no other table is read or changed than the one beside it.

    The kernel counts seconds from the moment it is told them. So that nothing is held too long when this process stands
    still after it has counted them, each renewal needs a ticket, an element that ends by itself and that the renewal
    takes away: with a ticket that has ended the kernel refuses the whole of it. What is held, an iterable of blocks and
    seconds, is counted by iterating over it, which is done once the ticket is there.
    """

    def __init__(self, table: str, pools: Sequence[Pool]) -> None:
        super().__init__()
        self._table, self._pools, self._turns = table, tuple(pools), 0

    def raise_up(self, held: Iterable[tuple[Block, float]]) -> None:
        """Put the table in place, in one transaction with what is held now, and for how many seconds."""
        name = terms_table_name(self._table)
        anew = [f"delete table inet {name}", render_terms(self._pools, self._table)]
        self._with_ticket(lambda: [*anew, self._renewal(held)], make_ticket_set(self._table))

    def renew(self, held: Iterable[tuple[Block, float]]) -> None:
        """Hold blocks for so many seconds from now on; what is not among them is held no longer than it was."""
        self._with_ticket(lambda: [self._renewal(held)])

    def hold_only(self, held: Iterable[tuple[Block, float]]) -> None:
        """The same, and everything else is held no more."""

        def renewals() -> list[str]:
            blocks = list(held)
            return [self._renewal(blocks), self._renewal(blocks)]

        self._with_ticket(renewals)

    def _with_ticket(self, count: Callable[[], list[str]], before: str = "") -> None:
        """Make a ticket, count what is held, and let the kernel know, if that was soon enough."""
        self._ask("load ruleset", text=f"{before}{make_ticket(self._table, _TICKET_S)}")
        self._ask("load ruleset", text="\n".join([use_ticket(self._table), *count()]))

    def _renewal(self, held: Iterable[tuple[Block, float]]) -> str:
        self._turns += 1
        owners = [(block, pool, seconds) for block, seconds in held for pool in self._pools if block in pool]
        return renewal(self._table, TURNS[self._turns % len(TURNS)], owners, versions(self._pools))
