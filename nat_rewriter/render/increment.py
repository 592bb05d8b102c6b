"""What a change of a few slices means for the elements, without rendering the others again.

Rendered are two small policies: the slices that share an address with those that change, and the rules beside the rules
that change. What differs between the two is what differs between the whole ones, as long as the small ones have the
same skeleton, and what the first of them has is in the whole table: both are checked here. Where they do not hold, the
answer is None, and the whole is to be rendered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from nat_rewriter.model.policy import Policy, SnatRule
from nat_rewriter.model.ruleset import Ruleset
from nat_rewriter.model.slices import Slice
from nat_rewriter.render.table import render

MOST = 64  # changed slices or rules: beyond it rendering everything is hardly slower
_NUMBERED = ("clients", "addresses", "sources")  # sets whose names say which run of rules they are of

T = TypeVar("T")
ByAddress = Mapping[tuple[int, int], Sequence[Slice]]
Changed = dict[str, tuple[dict[str, str], dict[str, str]]]  # set -> elements added, elements removed


def address_key(owned: Slice) -> tuple[int, int]:
    """Return the address of a slice as numbers, which are quicker to look up."""
    return owned.address.version, int(owned.address)


def changed_span(before: Sequence[T], after: Sequence[T]) -> tuple[slice, slice]:
    """Return where two sequences differ: what is left without their common beginning and end."""
    start, limit = 0, min(len(before), len(after))
    while start < limit and (before[start] is after[start] or before[start] == after[start]):
        start += 1
    end = 0
    while end < limit - start and (before[-1 - end] is after[-1 - end] or before[-1 - end] == after[-1 - end]):
        end += 1
    return slice(start, len(before) - end), slice(start, len(after) - end)


def changed_elements(before: Policy, after: Policy, known: Ruleset, by_address: ByAddress) -> Changed | None:
    """Return the elements that differ between two policies, None where more may differ.

    ``known`` is the ruleset of the first, and ``by_address`` has its slices.
    """
    if replace(before, slices=(), snat=()) != replace(after, slices=(), snat=()):
        return None
    pair = _reduced(before, after, by_address)
    if pair is None:
        return None
    old, new = render(pair[0]), render(pair[1])
    if old.skeleton != new.skeleton or old.elements.keys() != new.elements.keys():
        return None
    return _differences(old, new, known)


def _reduced(before: Policy, after: Policy, by_address: ByAddress) -> tuple[Policy, Policy] | None:
    gone, come = changed_span(before.slices, after.slices)
    was, will = before.slices[gone], after.slices[come]
    rules = _rules_beside(before.snat, after.snat)
    if rules is None or len(was) > MOST or len(will) > MOST:
        return None
    addresses = {address_key(owned) for owned in (*was, *will)}
    leaving = {id(owned) for owned in was}
    around = [owned for address in addresses for owned in by_address.get(address, ())]
    staying = [owned for owned in around if id(owned) not in leaving]
    if len(staying) + len(was) != len(around):
        return None
    old = replace(before, slices=(*staying, *was), snat=rules[0], dnat=())
    return old, replace(after, slices=(*staying, *will), snat=rules[1], dnat=())


def _rules_beside(before: Sequence[SnatRule], after: Sequence[SnatRule]) -> tuple[tuple[SnatRule, ...], ...] | None:
    """Return the rules that change, and the one before and after them; None where they change in more than slices."""
    gone, come = changed_span(before, after)
    was, will = before[gone], after[come]
    if len(was) != len(will) or len(was) > MOST:
        return None
    if any(replace(old, slices=()) != replace(new, slices=()) for old, new in zip(was, will, strict=True)):
        return None
    first, last = max(gone.start - 1, 0), gone.stop + 1
    return (tuple(before[first:last]), tuple(after[first:last])) if was else ((), ())


def _differences(old: Ruleset, new: Ruleset, known: Ruleset) -> Changed | None:
    found: Changed = {}
    for name, was in old.elements.items():
        will = new.elements[name]
        if name in known.dynamic or was == will:
            continue
        place = _place_of(name, was, known)
        if place is None or place in found:
            return None
        added = {key: data for key, data in will.items() if was.get(key) != data}
        removed = {key: data for key, data in was.items() if will.get(key) != data}
        held = known.elements[place]
        if any(key in held and key not in was for key in added):
            return None
        found[place] = added, removed
    return found


def _place_of(name: str, held: Mapping[str, str], known: Ruleset) -> str | None:
    """Return the set of the whole table that has these elements; None where none, or more than one, may be meant."""
    if not name.startswith(_NUMBERED):
        return name if name in known.elements and _has(known, name, held) else None
    found = [one for one in known.elements if one.startswith(name.rstrip("0123456789_")) and _has(known, one, held)]
    return found[0] if len(found) == 1 and held else None


def _has(known: Ruleset, name: str, held: Mapping[str, str]) -> bool:
    there = known.elements[name]
    return all(there.get(key) == data for key, data in held.items())
