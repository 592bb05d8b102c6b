"""A fake nftables: tables in memory, transactions by copy and commit."""

from __future__ import annotations

import copy
import errno
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nat_rewriter.errors import NftError
from nat_rewriter.model.ruleset import LiveTable
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

SETS_OF_SKELETON = re.compile(r"^\t(?:set|map) (\S+) \{", re.MULTILINE)


@dataclass
class _Table:
    skeleton: str
    elements: dict[str, dict[str, str]] = field(default_factory=dict)


class FakeNft:
    """Takes what the kernel takes and refuses what it refuses, as far as tables, sets and elements go.

    ``refuse_next`` makes the next transaction fail as a whole.
    """

    def __init__(self) -> None:
        self._tables: dict[str, _Table] = {}
        self.transactions: list[Transaction] = []
        self.refuse_next = False

    def check(self, transaction: Transaction) -> None:
        """Raise NftError if the transaction would be refused."""
        self._result_of(transaction)

    def run(self, transaction: Transaction) -> None:
        """Make all of the transaction happen, or raise NftError and change nothing."""
        result = self._result_of(transaction)
        if self.refuse_next:
            self.refuse_next = False
            raise NftError("load ruleset", errno.EINVAL, "refused as asked")
        self._tables = result
        if transaction:
            self.transactions.append(transaction)

    def read(self, table: str) -> LiveTable | None:
        """Return the table, None where there is none."""
        found = self._tables.get(table)
        return LiveTable(table, found.skeleton, copy.deepcopy(found.elements)) if found else None

    def listing_of(self, table: str, skeleton: str) -> str:
        """Return the skeleton: this nftables lists what it was given."""
        return skeleton

    def _result_of(self, transaction: Transaction) -> dict[str, _Table]:
        tables = copy.deepcopy(self._tables)
        for step in transaction.steps:
            _take(tables, step)
        return tables


def _take(tables: dict[str, _Table], step: Step) -> None:
    match step:
        case DeleteTable(table):
            tables.pop(table, None)
        case FlushRules(table):
            _table_of(tables, table).skeleton = ""
        case DeleteObject():
            _delete_object(tables, step)
        case CreateTable(table, skeleton):
            kept = tables[table].elements if table in tables else {}
            tables[table] = _Table(skeleton, {name: kept.get(name, {}) for name in SETS_OF_SKELETON.findall(skeleton)})
        case AddElements(table, name, elements):
            _add(_set_of(tables, table, name), elements)
        case DeleteElements(table, name, keys):
            _delete(_set_of(tables, table, name), keys)


def _delete_object(tables: dict[str, _Table], step: DeleteObject) -> None:
    if step.kind in ("set", "map"):
        _set_of(tables, step.table, step.name)
        del tables[step.table].elements[step.name]
    else:
        _table_of(tables, step.table)


def _add(held: dict[str, str], elements: Mapping[str, str]) -> None:
    for key, value in elements.items():
        if held.setdefault(key, value) != value:
            raise NftError("load ruleset", errno.EEXIST, f"File exists: {key!r}")


def _delete(held: dict[str, str], keys: Sequence[str]) -> None:
    for key in keys:
        if held.pop(key, None) is None:
            raise NftError("load ruleset", errno.ENOENT, f"No such file or directory: {key!r}")


def _table_of(tables: dict[str, _Table], table: str) -> _Table:
    if table not in tables:
        raise NftError("load ruleset", errno.ENOENT, f"No such file or directory: {table!r}")
    return tables[table]


def _set_of(tables: dict[str, _Table], table: str, name: str) -> dict[str, str]:
    try:
        return _table_of(tables, table).elements[name]
    except KeyError:
        raise NftError("load ruleset", errno.ENOENT, f"No such file or directory: {table!r} {name!r}") from None
