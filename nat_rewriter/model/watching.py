"""What a watcher knows at one moment, for views and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nat_rewriter.model.actions import Result, Verb
from nat_rewriter.model.findings import Finding, Kind
from nat_rewriter.model.overview import DestinationUse


@dataclass(frozen=True, slots=True)
class SliceUse:
    """How much of a slice is in use: its flows, and the destination that uses most of its ports.

    ``findable``: of as many new flows there as ports are free, how many the kernel's search would find one for.
    """

    name: str
    flows: int
    busiest: str  # protocol and destination; empty where nothing uses the slice
    used: int
    capacity: int
    findable: int


@dataclass(frozen=True, slots=True)
class RecorderStatus:
    """What a recorder of history has done since it began."""

    written: int = 0  # sightings that are on disk
    lost: int = 0  # entries and sightings that are not, and never will be
    queued: int = 0
    problem: str = ""  # why nothing is written now


@dataclass(frozen=True, slots=True)
class WatchStatus:
    """A watcher's state, counters since it began, and what is open now."""

    state: str  # live, stale or syncing
    entries: int = 0
    events: int = 0
    event_rate: float = 0.0  # events a second, over the time since the look before
    dropped: int = 0  # events that the kernel could not deliver
    resyncs: int = 0
    resync_seconds: float = 0.0  # of the last one
    slices: tuple[SliceUse, ...] = ()
    destinations: tuple[DestinationUse, ...] = ()  # those that use the largest share of a slice
    findings: tuple[Finding, ...] = ()
    opened: Mapping[Kind, int] = field(default_factory=dict)  # findings that opened since it began
    actions: Mapping[tuple[Verb, Result], int] = field(default_factory=dict)
    recorder: RecorderStatus | None = None  # None: no history is kept


@dataclass(frozen=True, slots=True)
class ConntrackCounts:
    """What the kernel counts itself: the size of the table, and for each CPU ``cpu`` and its counters by name."""

    entries: int
    max_entries: int
    cpus: tuple[Mapping[str, int], ...] = ()
