"""What natctl does about a finding where it may: the one entry, socket or table it touches, and what came of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from nat_rewriter.model.findings import Finding, SocketParty
from nat_rewriter.model.tuples import FlowTuple


class Verb(enum.Enum):
    """What is done to a target."""

    DELETE_ENTRY = "delete-entry"
    INSERT_ENTRY = "insert-entry"
    RESTORE_RULESET = "restore-ruleset"
    DESTROY_SOCKET = "destroy-socket"


class Result(enum.Enum):
    """What came of it."""

    DONE = "done"
    DRY_RUN = "dry-run"  # would have been done
    GONE = "gone"  # nothing to do any more: the target is gone, or has mended itself
    FAILED = "failed"  # tried, and refused; it may be tried again
    GIVEN_UP = "given-up"  # not tried: it was tried too often already


@dataclass(frozen=True, slots=True)
class EntryTarget:
    """One conntrack entry by its original tuple; ``id`` is None for one that is to be made."""

    tuple: FlowTuple
    zone: int = 0
    id: int | None = None


@dataclass(frozen=True, slots=True)
class SocketTarget:
    """One connected socket, from itself to its peer; ``cookie`` tells it from a later one with the same tuple."""

    tuple: FlowTuple
    socket: SocketParty = field(compare=False)  # it is the same one whether or not its process is known
    cookie: int


@dataclass(frozen=True, slots=True)
class TableTarget:
    """One nft table of family inet."""

    name: str


Target = EntryTarget | SocketTarget | TableTarget


@dataclass(frozen=True, slots=True)
class Action:
    """One thing done, or not done, about one finding. ``detail`` is a clause that says why, where it went otherwise."""

    verb: Verb
    target: Target
    finding: Finding
    result: Result
    detail: str | None = None
