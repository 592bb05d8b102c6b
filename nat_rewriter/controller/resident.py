"""A table that one process keeps: told the next policy, it sends what differs without reading everything again.

The kernel counts the rulesets of a network namespace (NFT_MSG_GETGEN). While the number is the one after natctl's own
last transaction, nothing has changed the table since; after the next transaction it is one more, or somebody else
was there as well. So what natctl knows of the table stays true, and what it has just sent is read back alone.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from nat_rewriter.controller.intent import Change, read_change, run_change
from nat_rewriter.controller.settling import is_unsettling, settle
from nat_rewriter.errors import NftError
from nat_rewriter.kernel.lock import table_lock
from nat_rewriter.kernel.nft import KernelNft
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.ruleset import Ruleset
from nat_rewriter.model.slices import Slice
from nat_rewriter.model.transaction import AddElements, DeleteElements, Step, Transaction
from nat_rewriter.plan import SetChange
from nat_rewriter.render.increment import Changed, address_key, changed_elements, changed_span
from nat_rewriter.render.table import SETTLED


class Resident:
    """Applies policies one after another.

    A change of a few slices is rendered, sent and read back by itself where nobody else has changed a ruleset since.
    :meth:`finish` does what may wait.
    """

    def __init__(self, nft: KernelNft) -> None:
        self._nft = nft
        self._policy: Policy | None = None
        self._change: Change | None = None
        self._generation = -1
        self._elements: dict[str, dict[str, str]] = {}
        self._by_address: defaultdict[tuple[int, int], list[Slice]] = defaultdict(list)

    def apply(self, policy: Policy) -> Change:
        """Make the kernel match a policy; return what was changed. Raises what intent.apply() raises."""
        with table_lock(policy.controller.table):
            change = self._apply_part(policy)
            if change is None:
                change = read_change(policy, self._nft)
                self._policy = None
                run_change(change, policy, self._nft)
                self._remember(policy, change)
        return change

    def finish(self) -> Change | None:
        """Compare the whole table with the whole policy, mend what differs, and let the guard settle.

        To be called once there is time after changes; returns what was mended, None where nothing was applied yet.
        """
        if self._policy is None:
            return None
        policy = self._policy
        with table_lock(policy.controller.table):
            change = read_change(policy, self._nft)
            if change.transaction:
                run_change(change, policy, self._nft)
            else:
                settled = change.live.elements.get(SETTLED, {}) if change.live else ()
                settle(change.wanted, policy.slices, self._nft, settled)
            self._remember(policy, change)
        return change

    def _remember(self, policy: Policy, change: Change) -> None:
        self._generation = self._nft.generation()
        self._elements = {name: dict(held) for name, held in change.wanted.elements.items()}
        self._by_address.clear()
        for owned in policy.slices:
            self._by_address[address_key(owned)].append(owned)
        self._policy, self._change = policy, change

    def _apply_part(self, policy: Policy) -> Change | None:
        """Apply what a change of a few slices means; None where the whole is to be applied."""
        if self._policy is None or self._change is None or self._nft.generation() != self._generation:
            return None
        known = replace(self._change.wanted, elements=self._elements)
        changed = changed_elements(self._policy, policy, known, self._by_address)
        if changed is None:
            return None
        settled = self._settled(changed)
        transaction = _transaction(known, changed, settled)
        expected = self._generation + bool(transaction)
        self._generation = -1  # whatever happens in between
        self._nft.run(transaction)
        if not self._nft.holds(known.table, changed):
            raise NftError("read back ruleset", 0, "the kernel holds something else than was sent: see natctl diff")
        if self._nft.generation() != expected:
            return None
        self._accept(policy, changed, expected)
        return Change(known, self._change.wanted_listing, None, transaction)

    def _settled(self, changed: Changed) -> tuple[str, ...]:
        """Return the protocols whose established flows may pass the guard no more without a look."""
        changes = [SetChange(name, *both) for name, both in changed.items()]
        if SETTLED not in self._elements or not is_unsettling(changes):
            return ()
        return tuple(self._nft.find_elements(self._policy_table(), {SETTLED: ("tcp", "udp")})[SETTLED])

    def _policy_table(self) -> str:
        assert self._policy is not None, "asked only once a policy is in force"
        return self._policy.controller.table

    def _accept(self, policy: Policy, changed: Changed, generation: int) -> None:
        assert self._policy is not None, "asked only once a policy is in force"
        for name, (added, removed) in changed.items():
            for key in removed:
                del self._elements[name][key]
            self._elements[name].update(added)
        gone, come = changed_span(self._policy.slices, policy.slices)
        for owned in self._policy.slices[gone]:
            self._by_address[address_key(owned)].remove(owned)
        for owned in policy.slices[come]:
            self._by_address[address_key(owned)].append(owned)
        self._policy, self._generation = policy, generation


def _transaction(known: Ruleset, changed: Changed, settled: tuple[str, ...]) -> Transaction:
    steps: list[Step] = [DeleteElements(known.table, SETTLED, settled)] if settled else []
    steps += [DeleteElements(known.table, name, tuple(gone)) for name, (_, gone) in changed.items() if gone]
    steps += [AddElements(known.table, name, added) for name, (added, _) in changed.items() if added]
    return Transaction(tuple(steps))
