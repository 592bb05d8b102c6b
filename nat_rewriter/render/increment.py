"""What an edit of a few slices means for the elements, without rendering the others.

Rendered are two small policies: the slices and rules that have to do with the edit, before and after it. What differs
between the two is what differs between the whole ones, as long as both have the same skeleton, and what the first of
them has is in the table. The one is looked at here; where it does not hold, the answer is None, and the whole is to be
rendered. The other only the kernel can tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from nat_rewriter.model.policy import Policy, SnatRule
from nat_rewriter.model.slices import PortRange, Protocol, Slice
from nat_rewriter.render.table import outline

_NUMBERED = ("clients", "addresses", "sources")  # sets whose names say which run of rules they are of


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs in a set: elements to add, and elements to take away, which the table has. Changed ones are in both.

    ``beside`` are further elements that the set has. ``name`` is that of the set in the table, or where it ends in
    ``*`` how that begins: the elements tell which one it is.
    """

    name: str
    added: Mapping[str, str]
    removed: Mapping[str, str]
    beside: Mapping[str, str]

    @property
    def there(self) -> Mapping[str, str]:
        """The elements that the set has."""
        return {**self.beside, **self.removed}

    def fits(self, held: Mapping[str, str]) -> bool:
        """Tell whether a set that holds these has what it is to have, and not yet what is added."""
        there = self.there
        return {key: held[key] for key in (there.keys() | self.added.keys()) & held.keys()} == there

    def could_be(self, name: str) -> bool:
        """Tell whether the set may have this name."""
        return name.startswith(self.name[:-1]) if self.name.endswith("*") else name == self.name


def differences(before: Policy, after: Policy) -> list[Difference] | None:
    """Return what differs between the elements of two small policies, None where more may differ."""
    if not _same_rules(before.snat, after.snat):
        return None
    kept = _kept(before.slices, after.slices)
    chains = {
        ports for one in (before, after) for owned in one.slices if owned.name not in kept for ports in owned.ranges
    }
    old, new = (outline(replace(one, slices=_needed(one.slices, kept, chains))) for one in (before, after))
    was, will, dynamic = old.elements(), new.elements(), old.dynamic
    if old.shape != new.shape or was.keys() != will.keys():
        return None
    return [
        _difference(name, held, will[name]) for name, held in was.items() if name not in dynamic and held != will[name]
    ]


def _kept(before: Sequence[Slice], after: Sequence[Slice]) -> frozenset[str]:
    """Return the names of the slices that are the same in both."""
    named = {owned.name: owned for owned in before}
    return frozenset(owned.name for owned in after if named.get(owned.name) == owned)


def _needed(slices: Sequence[Slice], kept: frozenset[str], chains: Set[PortRange]) -> tuple[Slice, ...]:
    """Return the slices without those that are kept and leave no trace in what differs.

    What two slices may share are elements for their address and for its echo ids, and with IPv6 the chains of ranges.
    """
    first = {str(owned.address): owned.name for owned in reversed(slices) if owned.name in kept}
    return tuple(
        owned
        for owned in slices
        if owned.name not in kept
        or Protocol.ICMP in owned.protocols
        or first[str(owned.address)] == owned.name
        or (owned.address.version == 6 and not chains.isdisjoint(owned.ranges))
    )


def _same_rules(before: Sequence[SnatRule], after: Sequence[SnatRule]) -> bool:
    """Tell whether rules differ in their slices alone."""
    return len(before) == len(after) and all(
        old._replace(slices=()) == new._replace(slices=()) for old, new in zip(before, after, strict=True)
    )


def _difference(name: str, was: Mapping[str, str], will: Mapping[str, str]) -> Difference:
    added = {key: data for key, data in will.items() if was.get(key) != data}
    removed = {key: data for key, data in was.items() if will.get(key) != data}
    if not name.startswith(_NUMBERED):
        return Difference(name, added, removed, {})
    stays = {key: data for key, data in was.items() if key not in removed}
    return Difference(name.rstrip("0123456789_") + "*", added, removed, stays)
