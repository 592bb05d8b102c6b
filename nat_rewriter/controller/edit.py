"""Applying an edit of the configuration in force: the elements that it changes are rendered, sent and read back alone.

That is so where nobody else has changed a ruleset since natctl last did, and where the edit is of slices and rules that
the same skeleton has. Anything else is for :func:`nat_rewriter.controller.apply.apply_configuration`, which reads all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

from nat_rewriter.config.edit import Edit, Excerpt, Mentions, edit_between, excerpt
from nat_rewriter.controller.generations import GenerationLog, Warn
from nat_rewriter.controller.in_force import InForce, note_in_force, read_in_force
from nat_rewriter.controller.record import Record
from nat_rewriter.controller.settling import PROTOCOLS, is_unsettling, strayless
from nat_rewriter.errors import NatctlError, NftError, RulesetMoved
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
    """What an edit changed, and the generation that it was kept as.

    The generation is None where nothing is new, or there is no place to keep it.
    """

    sets: Sequence[SetChange]
    generation: Generation | None


class _Part(NamedTuple):
    """What an edit means for the table: changes by set; what it is an edit of; whose flows the guard looks at again."""

    changes: Sequence[SetChange]
    unsettled: Sequence[str]  # protocols
    edit: Edit
    meant: Excerpt


class Editor:
    """Applies edits of the configuration in force, one after the other; a process that stays keeps what it knows.

    It belongs to the network namespace of the thread that makes it.
    """

    def __init__(self, log: GenerationLog, warn: Warn) -> None:
        self._log, self._warn, self._live = log, warn, LiveElements()
        self._known: InForce | None = None
        self._layouts: Mapping[str, Layout] = {}
        self._open: tuple[_Part, Record] | None = None  # what is in force and not settled yet

    def close(self) -> None:
        """Let the kernel go: it takes some milliseconds while it frees elements that were taken out."""
        self._live.close()

    @property
    def in_force(self) -> InForce | None:
        """What is known to be in force: nothing before the first edit, and where somebody else has a hand in it."""
        return self._known

    def apply(self, text: bytes, source: str, wait_s: float = 0.0) -> Edited | None:
        """Make the kernel match a configuration that is another one than that in force by a small edit.

        None where the whole has to be applied: nothing was done then. Raises LockHeld, StateError, and what the kernel
        says; a generation that failed is kept as such. :meth:`settle` is to be called after it.
        """
        self.settle()
        table = self._log.place.table
        with table_lock(table, wait_s):
            known = self._look()
            if known is None or is_waiting(table) or not _is_settled(table, self._layouts, self._live):
                return None
            if text == known.text:
                return Edited((), None)
            part = _part_of(text, known, table, self._layouts, self._live)
            return self._apply(part, text, source, known) if part else None

    def settle(self) -> None:
        """Do what the last edit need not wait for: until then the guard looks at every packet that it made it look at.

        There was no stray before the edit, so one can only be on an address that it has touched. Where another program
        changes a ruleset, or holds the table, at the same time, the guard goes on to look.
        """
        left, self._open = self._open, None
        if left is None:
            return
        part, record = left
        slices = [owned for owned in part.meant.after.slices if str(owned.address) in part.meant.touched]
        found = strayless(part.unsettled, slices)
        with suppress(NatctlError), table_lock(self._log.place.table):
            record.make_lasting()
            if self._known and found:
                self._known = self._settled(self._known, found)
            if self._known:
                note_in_force(self._log, self._known.generation, self._known.ruleset)

    def _settled(self, known: InForce, protocols: Sequence[str]) -> InForce:
        """Let flows of protocols pass the guard, on the ruleset that is known; return what is in force then."""
        added = AddElements(self._log.place.table, SETTLED, dict.fromkeys(protocols, ""))
        self._live.change(Transaction((added,)), self._layouts, known.ruleset)
        return replace(known, ruleset=known.ruleset + 1)

    def prepare(self) -> None:
        """Learn beforehand what the next edit would otherwise ask for: some tens of milliseconds, for who stays."""
        known = self._look()
        if known and known.mentions is None:
            self._known = replace(known, mentions=Mentions(known.text))

    def _look(self) -> InForce | None:
        """Return what is in force; the kernel vouches for it."""
        ruleset = self._live.generation()
        if self._known is None or self._known.ruleset != ruleset:
            self._known = read_in_force(self._log, ruleset)
            found = self._live.layouts(self._log.place.table)
            self._layouts = {name: one for name, one in found.items() if one and not one.is_sorted}
        return self._known

    def _apply(self, part: _Part, text: bytes, source: str, known: InForce) -> Edited | None:
        self._known = None  # until it is known again
        record = Record(self._log, self._warn)
        transaction = _transaction(self._log.place.table, part)
        record.begin_edit(known.generation, part.edit, source)
        try:
            with record.failing():
                self._live.change(transaction, self._layouts, known.ruleset)
                _verify(part, self._log.place.table, self._layouts, self._live)
        except RulesetMoved:
            return None
        record.note(Outcome.APPLIED)
        self._open = part, record
        kept, ruleset = record.generation, known.ruleset + bool(transaction)
        if kept and self._live.generation() == ruleset:
            self._known = replace(known, text=text, generation=kept.number, ruleset=ruleset, mentions=None)
        return Edited(part.changes, kept)


def _part_of(
    text: bytes, known: InForce, table: str, layouts: Mapping[str, Layout], live: LiveElements
) -> _Part | None:
    edit = edit_between(known.text, text)
    meant = excerpt(known.text, edit, known.frame, known.mentions) if edit else None
    found = differences(meant.before, meant.after) if meant else None
    if edit is None or meant is None or found is None:
        return None
    placed = _placed(found, table, layouts, live)
    if placed is None or (meant.after.controller.local_mark and any(one.set.startswith("soft") for one in placed)):
        return None
    return _Part(placed, tuple(PROTOCOLS) if SETTLED in layouts and is_unsettling(placed) else (), edit, meant)


def _placed(
    found: Sequence[Difference], table: str, layouts: Mapping[str, Layout], live: LiveElements
) -> list[SetChange] | None:
    """Return differences as changes of the sets of a table; None where it is not certain which set one is of."""
    names = [list(filter(one.could_be, layouts)) for one in found]
    wanted: dict[str, dict[str, str]] = {}
    for one, candidates in zip(found, names, strict=True):
        for name in candidates:
            wanted.setdefault(name, {}).update({**one.there, **one.added})
    held = live.find(table, {name: tuple(keys) for name, keys in wanted.items()}, layouts)
    if held is None:
        return None
    placed = []
    for one, candidates in zip(found, names, strict=True):
        fitting = [name for name in candidates if one.fits(held[name])]
        if len(fitting) != 1:
            return None
        placed.append(SetChange(fitting[0], one.added, one.removed))
    return placed


def _transaction(table: str, part: _Part) -> Transaction:
    steps: list[Step] = [DeleteElements(table, SETTLED, part.unsettled)] if part.unsettled else []
    steps += [DeleteElements(table, one.set, tuple(one.removed)) for one in part.changes if one.removed]
    steps += [AddElements(table, one.set, one.added) for one in part.changes if one.added]
    return Transaction(tuple(steps))


def _verify(part: _Part, table: str, layouts: Mapping[str, Layout], live: LiveElements) -> None:
    """Read back what was sent."""
    wanted = {one.set: tuple({**one.removed, **one.added}) for one in part.changes}
    if live.find(table, wanted, layouts) != {one.set: one.added for one in part.changes}:
        raise NftError("read back ruleset", 0, "the kernel holds something else than was sent: see natctl diff")


def _is_settled(table: str, layouts: Mapping[str, Layout], live: LiveElements) -> bool:
    """Tell whether the guard of the table looks at new flows alone, if it ever may: what keeps it may have ended."""
    if SETTLED not in layouts:
        return True
    found = live.find(table, _SETTLED_ALL, layouts)
    return found is not None and len(found[SETTLED]) == len(PROTOCOLS)
