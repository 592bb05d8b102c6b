"""How many live flows a change of the policy touches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nat_rewriter.comparison import compare
from nat_rewriter.controller.intent import Change
from nat_rewriter.detect.observation import Rows
from nat_rewriter.detect.ownership import NOBODY, SliceIndex
from nat_rewriter.detect.placement import Placement, place_flows
from nat_rewriter.errors import UnsupportedFeature
from nat_rewriter.kernel.conntrack import dump
from nat_rewriter.model.changes import Difference, PolicyChange, Verb
from nat_rewriter.model.flows import Origin, Status
from nat_rewriter.model.policy import DnatRule, Network, Policy, SnatRule

_HALF = (1 << 64) - 1


def read_policy_change(change: Change, policy: Policy, previous: Policy | None, *, count: bool) -> PolicyChange:
    """Return what a change of the table means by name, where it is known what made the live table.

    With ``count`` the live flows of this network namespace are counted, as far as the kernel tells them.
    """
    if change.live and not previous:
        return PolicyChange()
    before = previous if change.live else None
    found = compare(before, policy)
    if not count or not found.differences:
        return found
    try:
        return count_touched(found, before, policy, dump())
    except UnsupportedFeature:
        return found


def count_touched(change: PolicyChange, before: Policy | None, after: Policy, flows: Rows) -> PolicyChange:
    """Return the change with the number of live flows of each slice and rule that differs.

    Those of something added are what is there already. ``flows`` are records of FLOW_FIELDS. Which rule rewrote a flow
    conntrack does not tell: it counts for each rule that matches its addresses and leads to its slice.
    """
    old, new = (_Counted(policy, flows) for policy in (before or Policy(after.controller, ()), after))
    differences = (_counted(one, new if one.verb is Verb.ADDED else old, new) for one in change.differences)
    return replace(change, differences=tuple(differences))


class _Counted:
    """The flows of one policy."""

    def __init__(self, policy: Policy, flows: Rows) -> None:
        self.index = SliceIndex(policy.slices)
        placement = place_flows(flows, self.index)
        rows = np.flatnonzero(placement.slices != NOBODY)
        self.flows = flows[rows]
        self.placement = Placement(self.index, placement.slices[rows], placement.origins[rows])
        self._number_of = {owned.name: number for number, owned in enumerate(policy.slices)}
        self._snat = {rule.name: rule for rule in policy.snat}
        self._dnat = {rule.name: rule for rule in policy.dnat}

    def of(self, kind: str, name: str) -> Rows:
        """Tell of each flow whether it belongs to a slice or rule."""
        if kind == "slice":
            return self._in_slices((name,))
        return self._rewritten_by(self._snat[name]) if kind == "snat" else self._sent_on_by(self._dnat[name])

    def _in_slices(self, names: Sequence[str]) -> Rows:
        found: Rows = np.isin(self.placement.slices, [self._number_of[name] for name in names])
        return found

    def _rewritten_by(self, rule: SnatRule) -> Rows:
        found = self._in_slices([owned.name for owned in rule.slices]) & self.placement.with_origin(Origin.FORWARDED)
        rewritten: Rows = found & ((self.flows["status"] & Status.SRC_NAT) != 0)
        for field, networks in (("orig_src", rule.source), ("orig_dst", rule.destination)):
            rewritten &= _within(self.flows[field], self.flows["family"], networks)
        return rewritten

    def _sent_on_by(self, rule: DnatRule) -> Rows:
        ports = self.flows["orig_dport"]
        sent_on = (self.flows["status"] & Status.DST_NAT) != 0
        aimed = np.any([(one.first <= ports) & (ports <= one.last) for one in rule.ranges], axis=0)
        there: Rows = sent_on & aimed & self._in_slices((rule.slice.name,))
        return there


def _counted(one: Difference, side: _Counted, after: _Counted) -> Difference:
    rows = side.of(one.kind, one.name)
    if one.kind != "slice" or one.verb is Verb.ADDED:
        return replace(one, flows=int(np.count_nonzero(rows)))
    mine = side.flows[rows]
    stranded = np.count_nonzero(place_flows(mine, after.index).slices == NOBODY)
    return replace(one, flows=len(mine), stranded=int(stranded))


def _within(addresses: Rows, families: Rows, networks: Sequence[Network]) -> Rows:
    """Tell of each address, as two halves, whether it lies in one of the networks; in none given, all do."""
    if not networks:
        return np.ones(len(addresses), dtype=bool)
    found = np.zeros(len(addresses), dtype=bool)
    for network in networks:
        mask, wanted = int(network.netmask), int(network.network_address)
        same = families == network.version
        for half, shift in ((0, 64), (1, 0)):
            part = np.uint64(mask >> shift & _HALF)
            same = same & ((addresses[:, half] & part) == np.uint64(wanted >> shift & _HALF))
        found |= same
    return found
