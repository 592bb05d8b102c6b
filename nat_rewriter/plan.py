"""(wanted, live) -> the one transaction that makes them equal; empty when they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nat_rewriter.listing import Listing, Name, parse_listing
from nat_rewriter.model.ruleset import Elements, LiveTable, Ruleset
from nat_rewriter.model.transaction import (
    AddElements,
    CreateTable,
    DeleteElements,
    DeleteObject,
    DeleteTable,
    FlushRules,
    Step,
    Transaction,
)

ELEMENTS_A_STATEMENT = 5000  # nft's parser slows down on longer ones


@dataclass(frozen=True, slots=True)
class SetChange:
    """What differs in one set or map: elements to add, and elements to take away (changed ones are in both)."""

    set: str
    added: Mapping[str, str]
    removed: Mapping[str, str]


def is_rebuilt(wanted_listing: str, live: LiveTable | None) -> bool:
    """Tell whether more than elements differ, so that the rules have to be made anew."""
    return live is None or live.listing != wanted_listing


def plan(wanted: Ruleset, wanted_listing: str, live: LiveTable | None, recorded: Elements | None = None) -> Transaction:
    """Return what makes the live table equal to the wanted one.

    ``wanted_listing`` is how this kernel and nft list the wanted skeleton. Where only elements differ, only those are
    sent. Where the skeleton differs, the rules are made anew around the sets that stay; ``recorded`` (else what the
    live table has) goes into those sets that packets fill and that are new.
    """
    kept = recorded if recorded is not None else live.elements if live else {}
    if live is None:
        return Transaction(tuple(_creation(wanted, kept)))
    if not is_rebuilt(wanted_listing, live):
        return Transaction(tuple(_element_steps(wanted, live)))
    old, new = parse_listing(live.listing), parse_listing(wanted_listing)
    if old.head != new.head:
        return Transaction(tuple(_creation(wanted, kept)))
    return Transaction(tuple(_rebuild(wanted, live, (old, new), kept)))


def plan_records(wanted: Ruleset, recorded: Elements) -> Transaction:
    """Return what adds elements to the sets that packets fill; those that are there keep their age."""
    return Transaction(tuple(_records(wanted, recorded)))


def plan_removal(live: LiveTable | None) -> Transaction:
    """Return what takes the table away; empty when there is none."""
    return Transaction((DeleteTable(live.table),)) if live else Transaction()


def set_changes(wanted: Ruleset, live: LiveTable) -> Iterator[SetChange]:
    """Yield what differs, set by set; sets that packets fill are left alone."""
    for name in sorted(wanted.elements.keys() | live.elements.keys()):
        if name in wanted.dynamic:
            continue
        want, have = wanted.elements.get(name, {}), live.elements.get(name, {})
        if want != have:
            added = {key: value for key, value in want.items() if have.get(key) != value}
            removed = {key: value for key, value in have.items() if want.get(key) != value}
            yield SetChange(name, added, removed)


def _creation(wanted: Ruleset, recorded: Elements) -> Iterator[Step]:
    yield DeleteTable(wanted.table)
    yield CreateTable(wanted.table, wanted.skeleton)
    for name, elements in wanted.elements.items():
        yield from _additions(wanted.table, name, elements)
    yield from _records(wanted, recorded)


def _rebuild(wanted: Ruleset, live: LiveTable, listings: tuple[Listing, Listing], recorded: Elements) -> Iterator[Step]:
    """Make the rules anew around the sets that stay as they are.

    A set made anew is empty for the first packets that pass its rules, because the kernel fills interval sets only
    after it has switched to the new rules (nf_tables_commit): the guard would drop what is ours.
    """
    gone = list(_obsolete(*listings))
    staying = {name: held for name, held in live.elements.items() if name not in {each.name for each in gone}}
    changes = list(set_changes(wanted, LiveTable(live.table, "", staying)))
    yield FlushRules(wanted.table)
    for change in changes:
        if change.removed:
            yield DeleteElements(wanted.table, change.set, tuple(change.removed))
    yield from (DeleteObject(wanted.table, *name) for name in gone)
    yield CreateTable(wanted.table, wanted.skeleton)
    for change in changes:
        yield from _additions(wanted.table, change.set, change.added)
    yield from _records(wanted, {name: held for name, held in recorded.items() if name not in staying})


def _obsolete(old: Listing, new: Listing) -> list[Name]:
    """Return the objects that have to go: sets and maps first, for maps may refer to chains."""

    def stays(name: Name) -> bool:
        if name.kind == "chain":
            return name in new.objects and old.hook(name) == new.hook(name)
        return old.objects[name] == new.objects.get(name)

    return sorted((name for name in old.objects if not stays(name)), key=lambda name: name.kind == "chain")


def _records(wanted: Ruleset, recorded: Elements) -> Iterator[Step]:
    for name in sorted(wanted.dynamic & wanted.elements.keys()):
        yield from _additions(wanted.table, name, recorded.get(name, {}))


def _element_steps(wanted: Ruleset, live: LiveTable) -> Iterator[Step]:
    changes = list(set_changes(wanted, live))
    for change in changes:
        if change.removed:
            yield DeleteElements(wanted.table, change.set, tuple(change.removed))
    for change in changes:
        yield from _additions(wanted.table, change.set, change.added)


def _additions(table: str, name: str, elements: Mapping[str, str]) -> Iterator[Step]:
    items = list(elements.items())
    for start in range(0, len(items), ELEMENTS_A_STATEMENT):
        yield AddElements(table, name, dict(items[start : start + ELEMENTS_A_STATEMENT]))
