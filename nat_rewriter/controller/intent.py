"""Intent: what the policy means, what the kernel has, and the transaction between them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from nat_rewriter.controller.marking import forget_leaving, mark_local_flows
from nat_rewriter.controller.settling import find_strayless, is_unsettling, lasting, settle, settled_protocols, unsettle
from nat_rewriter.errors import NftError
from nat_rewriter.kernel.lock import table_lock
from nat_rewriter.kernel.nft import KernelNft, Nft
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.ruleset import Elements, LiveTable, Ruleset
from nat_rewriter.model.transaction import Transaction
from nat_rewriter.plan import SetChange, is_rebuilt, plan, plan_records, plan_removal, set_changes
from nat_rewriter.render import outline, render
from nat_rewriter.render.parts import Parts

ReadClaims = Callable[[Policy], Elements]


@dataclass(frozen=True, slots=True)
class Change:
    """The wanted table, the live one, and the transaction from one to the other."""

    wanted: Ruleset
    wanted_listing: str
    live: LiveTable | None
    transaction: Transaction

    @property
    def action(self) -> str:
        """What the transaction does to the table as a whole: none, create, rebuild or update."""
        if not self.transaction:
            return "none"
        if self.live is None:
            return "create"
        return "rebuild" if self.live.listing != self.wanted_listing else "update"

    @property
    def sets(self) -> list[SetChange]:
        """What differs, set by set."""
        return list(set_changes(self.wanted, self.live or LiveTable(self.wanted.table, "")))

    def rule_lines(self) -> list[str]:
        """Return what differs outside of the elements, as lines of a unified diff."""
        have = self.live.listing.splitlines() if self.live else []
        lines = difflib.unified_diff(
            have, self.wanted_listing.splitlines(), "kernel", "configuration", lineterm="", n=1
        )
        return list(lines)


def read_claims(policy: Policy) -> Elements:
    """Return the claims of the flows that conntrack has now; none where the policy records no claims."""
    if not Parts.of(policy).claims:
        return {}
    from nat_rewriter.claims import claims_of
    from nat_rewriter.kernel.conntrack import dump

    return claims_of(dump(), policy.slices)


def read_change(policy: Policy, nft: Nft, claims: ReadClaims = read_claims) -> Change:
    """Compare the policy with the kernel; change nothing.

    A table that is made anew starts with what the old one recorded, and with the claims of all flows.
    """
    outlined = outline(policy)
    skeleton = outlined.skeleton()
    with ThreadPoolExecutor(max_workers=1) as beside:  # it is work for another process
        tried_out = beside.submit(nft.listing_of, outlined.table, skeleton)
        wanted = outlined.ruleset(skeleton)
        live = nft.read(wanted.table)
        listing = tried_out.result()
    recorded = None
    if is_rebuilt(listing, live):
        recorded = {**(lasting(live.elements) if live else {}), **claims(policy)}
    return Change(wanted, listing, live, plan(wanted, listing, live, recorded))


def read_foreign_edits(live: LiveTable | None, applied: Policy, nft: Nft) -> list[str]:
    """Return how a live table differs from what was applied, as :func:`drift_lines`: what somebody else did to it."""
    if live is None:
        return []
    made = render(applied)
    listing = nft.listing_of(made.table, made.skeleton)
    return list(drift_lines(Change(made, listing, live, plan(made, listing, live))))


def apply(policy: Policy, nft: Nft, claims: ReadClaims = read_claims) -> Change:
    """Make the kernel match the policy in one transaction, and return what was changed.

    Raises LockHeld, or NftError with the kernel as it was before; NftError also where what was read back differs.
    """
    with table_lock(policy.controller.table):
        change = read_change(policy, nft, claims)
        run_change(change, policy, nft, claims)
    return change


def run_change(change: Change, policy: Policy, nft: Nft, claims: ReadClaims = read_claims) -> None:
    """Run and read back what :func:`read_change` found; the caller has held the table's lock since.

    There is no check before: the skeleton was tried out, and the kernel takes all of a transaction or nothing.
    """
    settled = _settled_throughout(change, nft)
    forget_leaving(change.wanted, change.live, nft)
    nft.run(change.transaction)
    with ThreadPoolExecutor(max_workers=1) as beside:  # one asks nf_tables, the other conntrack
        strayless = beside.submit(find_strayless, change.wanted, policy.slices, settled)
        if change.transaction:
            _verify(change, nft)
    if change.action in ("create", "rebuild"):
        # Flows that began between the look at conntrack and the new table: their claims died with the old one.
        nft.run(plan_records(change.wanted, claims(policy)))
    settle(change.wanted, strayless.result(), nft)
    mark_local_flows(policy.controller, change.wanted, change.live, nft)


def remove(table: str, nft: Nft) -> bool:
    """Take natctl's table out of the kernel; tell whether there was one."""
    with table_lock(table):
        transaction = plan_removal(nft.read(table))
        nft.run(transaction)
    return bool(transaction)


def read_drift(policy: Policy) -> list[str]:
    """Return how the live table differs from the policy, as lines for people; none where it does not."""
    with KernelNft() as nft:
        return list(drift_lines(read_change(policy, nft)))


def drift_lines(change: Change) -> Iterator[str]:
    """Yield the difference between kernel and policy: + is missing in the kernel, - is there and not wanted."""
    if change.action == "none":
        return
    if change.live is None:
        yield f"+table inet {change.wanted.table}"
        return
    yield from change.rule_lines()
    for one in change.sets:
        yield from (f"-{one.set}: {element_line(key, value)}" for key, value in one.removed.items())
        yield from (f"+{one.set}: {element_line(key, value)}" for key, value in one.added.items())


def element_line(key: str, value: str) -> str:
    """Return an element of a set or map as nft writes it."""
    return f"{key} : {value}" if value else key


def _settled_throughout(change: Change, nft: Nft) -> Collection[str]:
    """Return the protocols whose established flows pass the guard without a look, before a change and after it."""
    if change.action in ("create", "rebuild") or is_unsettling(change.sets):
        unsettle(change.live, nft)
        return ()
    return settled_protocols(change.live)


def _verify(change: Change, nft: Nft) -> None:
    live = nft.read(change.wanted.table)
    left = plan(change.wanted, change.wanted_listing, live)
    if left:
        raise NftError("read back ruleset", 0, "the kernel holds something else than was sent: see natctl diff")
