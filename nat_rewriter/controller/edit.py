"""Applying an edit of the configuration in force: the elements that it changes are rendered, sent and read back alone.

That is so where nobody else has changed a ruleset since natctl last did, and where the edit is of slices and rules that
the same skeleton has. Anything else is for :func:`nat_rewriter.controller.apply.apply_configuration`, which reads all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

from nat_rewriter.config.edit import Edit, Excerpt, edit_between, excerpt
from nat_rewriter.controller.generations import GenerationLog, Record, Warn
from nat_rewriter.controller.in_force import InForce, note_in_force, read_in_force
from nat_rewriter.controller.settling import PROTOCOLS, is_unsettling, strayless
from nat_rewriter.errors import NatctlError, NftError, RulesetMoved, StateError
from nat_rewriter.kernel.confirm_socket import is_waiting
from nat_rewriter.kernel.lock import table_lock
from nat_rewriter.kernel.nft_batches import LiveElements
from nat_rewriter.kernel.nft_elements import Layout
from nat_rewriter.model.generations import Generation, Outcome
from nat_rewriter.model.transaction import AddElements, DeleteElements, Step, Transaction
from nat_rewriter.plan import SetChange
from nat_rewriter.render.increment import Difference, differences
from nat_rewriter.render.table import SETTLED

_SETTLED_ALL = {SETTLED: tuple(PROTOCOLS)}


@dataclass(frozen=True, slots=True)
class Edited:
    """What an edit changed, the generation that it was kept as, and what is in force now, where that is known.

    The generation is None where nothing is new, or there is no place to keep it.
    """

    sets: Sequence[SetChange]
    generation: Generation | None
    in_force: InForce | None


class _Part(NamedTuple):
    """What an edit means for the table: changes by set, and how to write them; what it is an edit of."""

    changes: Sequence[SetChange]
    layouts: Mapping[str, Layout]
    settled: Sequence[str]  # protocols whose flows the guard has to look at again
    edit: Edit
    meant: Excerpt


def apply_edit(
    text: bytes, source: str, log: GenerationLog, warn: Warn, wait_s: float = 0.0, known: InForce | None = None
) -> Edited | None:
    """Make the kernel match a configuration that is another one than that in force by a small edit.

    ``known`` is what a process that stays knows to be in force. None where the whole has to be applied: nothing was
    done then. Raises LockHeld, StateError, and what the kernel says; a generation that failed is kept as such.
    """
    with table_lock(log.place.table, wait_s), LiveElements() as live:
        now = live.generation()
        if known is None or known.ruleset != now:
            known = read_in_force(log, now)
        if known is None or is_waiting(log.place.table):
            return None
        layouts = {name: one for name, one in live.layouts(log.place.table).items() if one and not one.is_sorted}
        if not _is_settled(log.place.table, layouts, live):
            return None
        if text == known.text:
            return Edited((), None, known)
        part = _part_of(text, known, log.place.table, layouts, live)
        return _apply(part, source, known, Record(log, warn), live) if part else None


def _part_of(
    text: bytes, known: InForce, table: str, layouts: Mapping[str, Layout], live: LiveElements
) -> _Part | None:
    edit = edit_between(known.text, text)
    meant = excerpt(known.text, edit, known.frame) if edit else None
    found = differences(meant.before, meant.after) if meant else None
    if edit is None or meant is None or found is None:
        return None
    changes = [_placed(one, table, layouts, live) for one in found]
    placed = [one for one in changes if one]
    marks = meant.after.controller.local_mark and any(one.set.startswith("soft") for one in placed)
    if len(placed) < len(changes) or marks:
        return None
    settled = tuple(PROTOCOLS) if SETTLED in layouts and is_unsettling(placed) else ()
    return _Part(placed, layouts, settled, edit, meant)


def _placed(found: Difference, table: str, layouts: Mapping[str, Layout], live: LiveElements) -> SetChange | None:
    """Return a difference as a change of the one set of the table that has what it takes away, and not what it adds."""
    there = {**found.beside, **found.removed}
    absent = [key for key in found.added if key not in there]
    names = []
    for name in filter(found.could_be, layouts):
        held = live.find(table, {name: (*there, *absent)}, layouts)
        if held is None:
            return None
        if held[name] == there:
            names.append(name)
    return SetChange(names[0], found.added, found.removed) if len(names) == 1 else None


def _apply(part: _Part, source: str, known: InForce, record: Record, live: LiveElements) -> Edited | None:
    table = record.log.place.table
    transaction = _transaction(table, part)
    record.begin_edit(known.generation, part.edit, source)
    try:
        with record.failing():
            live.change(transaction, part.layouts, known.ruleset)
            _verify(part, table, live)
    except RulesetMoved:
        return None
    ruleset = known.ruleset + bool(transaction)
    ruleset += _settle(part, table, ruleset, live)
    record.finish(Outcome.APPLIED)
    kept = record.generation
    if kept is None or live.generation() != ruleset:
        return Edited(part.changes, kept, None)
    now = replace(known, text=part.edit.of(known.text), generation=kept.number, ruleset=ruleset)
    with suppress(StateError):  # then the next edit reads all
        note_in_force(record.log, now.generation, now.ruleset)
    return Edited(part.changes, kept, now)


def _transaction(table: str, part: _Part) -> Transaction:
    steps: list[Step] = [DeleteElements(table, SETTLED, part.settled)] if part.settled else []
    steps += [DeleteElements(table, one.set, tuple(one.removed)) for one in part.changes if one.removed]
    steps += [AddElements(table, one.set, one.added) for one in part.changes if one.added]
    return Transaction(tuple(steps))


def _verify(part: _Part, table: str, live: LiveElements) -> None:
    """Read back what was sent."""
    wanted = {one.set: tuple({**one.removed, **one.added}) for one in part.changes}
    if live.find(table, wanted, part.layouts) != {one.set: one.added for one in part.changes}:
        raise NftError("read back ruleset", 0, "the kernel holds something else than was sent: see natctl diff")


def _settle(part: _Part, table: str, ruleset: int, live: LiveElements) -> bool:
    """Let the guard settle again where the edit made it look; tell whether that was done.

    There was no stray before, so one can only be on an address that the edit has touched. Where another program
    changes a ruleset at the same time, the guard goes on to look.
    """
    slices = [owned for owned in part.meant.after.slices if str(owned.address) in part.meant.touched]
    found = strayless(part.settled, slices)
    if found:
        try:
            live.change(Transaction((AddElements(table, SETTLED, dict.fromkeys(found, "")),)), part.layouts, ruleset)
        except NatctlError:
            return False
    return bool(found)


def _is_settled(table: str, layouts: Mapping[str, Layout], live: LiveElements) -> bool:
    """Tell whether the guard of the table looks at new flows alone, if it ever may: what keeps it may have ended."""
    if SETTLED not in layouts:
        return True
    found = live.find(table, _SETTLED_ALL, layouts)
    return found is not None and len(found[SETTLED]) == len(PROTOCOLS)
