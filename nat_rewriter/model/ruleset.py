"""A table as natctl means it and as the kernel holds it: a skeleton, and elements of sets and maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Elements = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Ruleset:
    """A wanted table of family inet.

    ``skeleton`` is nft text: the table with its chains, rules and empty sets. ``elements`` maps the name of every set
    and map to its elements, key text -> data text (empty for a set), in the spelling that :mod:`nat_rewriter.render`
    and the kernel's listing share. ``dynamic`` names the sets that packets fill, whether or not this table has them.
    """

    table: str
    skeleton: str
    elements: Elements = field(default_factory=dict)
    dynamic: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class LiveTable:
    """A table as the kernel lists it: the skeleton in the kernel's own spelling, and the elements of every set."""

    table: str
    listing: str
    elements: Elements = field(default_factory=dict)
