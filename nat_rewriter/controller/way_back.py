"""The way back from a change to the table as it was: found before the change is made, gone without any file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nat_rewriter.controller.intent import Change, read_claims
from nat_rewriter.controller.settling import find_strayless, lasting, owned_slices, settle, unsettle
from nat_rewriter.errors import NatctlError, NftError
from nat_rewriter.kernel.nft import Nft
from nat_rewriter.kernel.nft_listing import dynamic_sets
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.ruleset import Elements, LiveTable, Ruleset
from nat_rewriter.model.transaction import Transaction
from nat_rewriter.plan import plan, plan_removal
from nat_rewriter.render import render
from nat_rewriter.render.table import SETTLED


@dataclass(frozen=True, slots=True)
class WayBack:
    """A table as it was before a change (None: there was none), as something wanted.

    ``listing`` is how the kernel listed it; ``policy`` what it was made from, where that is known.
    """

    table: str
    before: Ruleset | None
    listing: str = ""
    policy: Policy | None = None


def find_way_back(change: Change, policy: Policy, previous: Callable[[], Policy | None], nft: Nft) -> WayBack:
    """Return the way back from a change to ``policy``; ``previous`` tells what is believed to be applied.

    Raises NatctlError where the kernel would not take the table as it was: someone made it that natctl does not know.
    """
    if change.live is None:
        return WayBack(change.wanted.table, None)
    if change.action != "rebuild":
        return _way_to(change.live, change.wanted.skeleton, policy)
    way = _way_to_skeleton(change.live, previous(), nft)
    try:
        nft.check(_transaction(way, None, {}))
    except NftError as error:
        raise NatctlError(
            "find way back", f"this table is not what natctl applied last, and nft does not take it: {error.detail}"
        ) from None
    return way


def go_back(way: WayBack, nft: Nft) -> bool:
    """Make the table what it was, in one transaction; tell whether it was anything else. The caller holds its lock."""
    live = nft.read(way.table)
    transaction = _transaction(way, live, read_claims(way.policy) if way.policy else {})
    if transaction:
        unsettle(live, nft)
    nft.run(transaction)
    if transaction and _transaction(way, nft.read(way.table), {}):
        raise NftError("read back ruleset", 0, "the kernel holds something else than was sent: see natctl diff")
    if transaction and way.before:
        settle(way.before, find_strayless(way.before, owned_slices(way.before.elements)), nft)
    return bool(transaction)


def _way_to_skeleton(live: LiveTable, known: Policy | None, nft: Nft) -> WayBack:
    # The kernel's own listing is not always something that nft reads: 1.0.6 writes `ct timeout` with a comma too many.
    if known:
        skeleton = render(known).skeleton
        if nft.listing_of(live.table, skeleton) == live.listing:
            return _way_to(live, skeleton, known)
    return _way_to(live, live.listing, None)


def _way_to(live: LiveTable, skeleton: str, policy: Policy | None) -> WayBack:
    dynamic = frozenset(dynamic_sets(live.listing)) | {SETTLED}
    before = Ruleset(live.table, skeleton, live.elements, dynamic)
    return WayBack(live.table, before, live.listing, policy)


def _transaction(way: WayBack, live: LiveTable | None, claims: Elements) -> Transaction:
    if way.before is None:
        return plan_removal(live)
    elements, dynamic = way.before.elements, way.before.dynamic
    fixed = {name: {} if name in dynamic else held for name, held in elements.items()}
    recorded = lasting({**elements, **(live.elements if live else {}), **claims})
    return plan(Ruleset(way.table, way.before.skeleton, fixed, dynamic), way.listing, live, recorded)
