"""Generations: what was applied to a table, by whom, when, and what became of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nat_rewriter.model.policy import Policy


class Outcome(enum.Enum):
    """What became of a generation."""

    UNFINISHED = "unfinished"  # begun; natctl was ended before it could say more
    DRAINING = "draining"  # its withdrawn slices take no new flows, and still have old ones
    UNCONFIRMED = "unconfirmed"  # in the kernel, and taken back unless somebody confirms it
    APPLIED = "applied"
    FAILED = "failed"  # refused; the kernel is as it was
    ROLLED_BACK = "rolled-back"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who ran natctl: the user it ran as, the one who asked for that (sudo), and the process."""

    uid: int
    user: str
    pid: int
    command: str


@dataclass(frozen=True, slots=True)
class Generation:
    """One change of a table. ``action``: create, rebuild, update, none (the same in the kernel) or remove.

    ``source`` is where the configuration was read; ``rolled_back_to`` the generation it was taken from.
    """

    number: int
    time: datetime
    action: str
    outcome: Outcome
    actor: Actor
    netns: str
    table: str
    source: str
    natctl: str
    rolled_back_to: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration as it was read, and what it means."""

    text: bytes
    source: str
    policy: Policy
    rolled_back_to: int | None = None

    @property
    def table(self) -> str:
        """The table that it is for."""
        return self.policy.controller.table


@dataclass(frozen=True, slots=True)
class Place:
    """Where the generations of one table in one network namespace are kept."""

    root: Path
    netns: str
    table: str

    @property
    def directory(self) -> Path:
        """The directory of this table."""
        return self.root / self.netns / self.table
