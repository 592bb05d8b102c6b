"""What differs between two policies, slice by slice and rule by rule."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Verb(enum.Enum):
    """What happens to a slice or a rule."""

    ADDED = "added"
    CHANGED = "changed"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class Difference:
    """One slice or rule that differs; ``before`` and ``after`` are its fields as a configuration has them.

    ``flows`` is how many live flows it has, ``stranded`` how many of them no slice of this host owns any more; None
    where nobody has looked.
    """

    kind: str  # slice, snat or dnat
    name: str
    before: Mapping[str, str] | None
    after: Mapping[str, str] | None
    flows: int | None = None
    stranded: int | None = None

    @property
    def verb(self) -> Verb:
        """What happens to it."""
        if self.before is None:
            return Verb.ADDED
        return Verb.WITHDRAWN if self.after is None else Verb.CHANGED

    @property
    def fields(self) -> dict[str, tuple[str, str]]:
        """The fields that differ: name -> before and after, empty where there was or is none."""
        before, after = self.before or {}, self.after or {}
        names = dict.fromkeys((*before, *after))
        found = {name: (before.get(name, ""), after.get(name, "")) for name in names}
        return {name: pair for name, pair in found.items() if pair[0] != pair[1]}


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """All that differs. ``settings``: key of [controller] -> before and after."""

    differences: tuple[Difference, ...] = ()
    settings: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.differences or self.settings)
