"""(wanted, live) -> the one transaction that makes them equal; empty when they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nat_rewriter.model.ruleset import Elements, LiveTable, Ruleset
from nat_rewriter.model.transaction import AddElements, CreateTable, DeleteElements, DeleteTable, Step, Transaction

ELEMENTS_A_STATEMENT = 5000  # nft's parser slows down on longer ones


@dataclass(frozen=True, slots=True)
class SetChange:
    """What differs in one set or map: elements to add, and elements to take away (changed ones are in both)."""

    set: str
    added: Mapping[str, str]
    removed: Mapping[str, str]


def is_rebuilt(wanted_listing: str, live: LiveTable | None) -> bool:
    """Tell whether more than elements differ, so that the table has to be made anew."""
    return live is None or live.listing != wanted_listing


def plan(wanted: Ruleset, wanted_listing: str, live: LiveTable | None, recorded: Elements | None = None) -> Transaction:
    """Return what makes the live table equal to the wanted one.

    ``wanted_listing`` is how this kernel and nft list the wanted skeleton. Where only elements differ, only those are
    sent; where the skeleton differs, the table is rebuilt, and ``recorded`` (else what the live table has) goes into
    the sets that packets fill.
    """
    if live is None or is_rebuilt(wanted_listing, live):
        kept = recorded if recorded is not None else live.elements if live else {}
        return Transaction(tuple(_rebuild(wanted, kept)))
    return Transaction(tuple(_element_steps(wanted, live)))


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


def _rebuild(wanted: Ruleset, recorded: Elements) -> Iterator[Step]:
    yield DeleteTable(wanted.table)
    yield CreateTable(wanted.table, wanted.skeleton)
    for name, elements in wanted.elements.items():
        yield from _additions(wanted.table, name, elements)
    yield from _records(wanted, recorded)


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
