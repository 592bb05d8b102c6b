"""A transaction: verbs and objects, in the order the kernel gets them; all of it happens or none of it.

The same value is printed, checked and run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeleteTable:
    """Take a table away, if it is there."""

    table: str


@dataclass(frozen=True, slots=True)
class FlushRules:
    """Take all rules out of a table; its chains and sets, and what is in the sets, stay."""

    table: str


@dataclass(frozen=True, slots=True)
class DeleteObject:
    """Take a set, map, chain or other object out of a table, when no rule refers to it; ``kind`` is nft's word."""

    table: str
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class CreateTable:
    """Make what the skeleton's nft text has: the table and the objects in it that are absent, and all its rules."""

    table: str
    skeleton: str


@dataclass(frozen=True, slots=True)
class AddElements:
    """Add elements, key -> data (empty for a set), to a set or map."""

    table: str
    set: str
    elements: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DeleteElements:
    """Take elements out of a set or map by their keys; all of them are there."""

    table: str
    set: str
    keys: Sequence[str]


Step = DeleteTable | FlushRules | DeleteObject | CreateTable | AddElements | DeleteElements


@dataclass(frozen=True, slots=True)
class Transaction:
    """Steps that the kernel takes as one."""

    steps: tuple[Step, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps)
