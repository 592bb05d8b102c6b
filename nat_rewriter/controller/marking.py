"""Marking local flows with a bit of the conntrack mark, where the operator lends one: the kernel then finds them alone.

The table marks what leaves. A set of it says of which addresses all flows are marked: an address comes into it when
those are marked as well that were there before the table, and leaves it before the table ceases to mark. So natctl
killed in between leaves a look that asks for flows in another way.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from nat_rewriter.errors import NatctlError
from nat_rewriter.kernel.nft import Nft
from nat_rewriter.model.policy import MARKED, Controller
from nat_rewriter.model.ruleset import Elements, LiveTable, Ruleset
from nat_rewriter.model.transaction import AddElements, DeleteElements, Transaction


def forget_leaving(wanted: Ruleset, live: LiveTable | None, nft: Nft) -> None:
    """Take back what a table says of the flows of addresses that are about to leave it."""
    steps = [
        DeleteElements(wanted.table, name, tuple(gone))
        for name, held in (live.elements.items() if live else ())
        if name.startswith(MARKED)
        and (gone := [each for each in held if each not in wanted.elements.get(_soft_set(name), {})])
    ]
    if steps:
        nft.run(Transaction(tuple(steps)))


def mark_local_flows(controller: Controller, wanted: Ruleset, live: LiveTable | None, nft: Nft) -> None:
    """Mark the flows that were there before the table that is in force now, and say so in it.

    ``live`` is the table before. A bit that is lent no more is given back. Where conntrack cannot be asked, nothing is
    said.
    """
    before = live.elements if live else {}
    try:
        unmark(_bits(before) - {controller.local_mark})
        for name in (controller.marked_set(4), controller.marked_set(6)) if controller.local_mark else ():
            fresh = [each for each in wanted.elements.get(_soft_set(name), {}) if each not in before.get(name, {})]
            if fresh:
                _mark(fresh, controller.local_mark)
                nft.run(Transaction((AddElements(wanted.table, name, dict.fromkeys(fresh, "")),)))
    except NatctlError:
        return


def unmark_all(live: LiveTable | None) -> None:
    """Give back the bits that a table has marked flows with, once it is gone. Raises NetlinkError, PermissionNeeded."""
    unmark(_bits(live.elements if live else {}))


def unmark(bits: Iterable[int]) -> None:
    """Clear bits of conntrack marks."""
    for bit in bits:
        from nat_rewriter.kernel.conntrack_marks import unmark_flows

        unmark_flows(bit)


def _mark(addresses: Iterable[str], bit: int) -> None:
    from nat_rewriter.kernel.conntrack_marks import mark_flows_from

    for address in addresses:
        mark_flows_from(ip_address(address), bit)


def _bits(elements: Elements) -> set[int]:
    return {1 << int(name.partition("_")[2]) for name in elements if name.startswith(MARKED)}


def _soft_set(marked: str) -> str:
    return f"soft{marked.removeprefix(MARKED)[0]}"
