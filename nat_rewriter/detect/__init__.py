"""Detection: an observation in, findings out; pure, over whole tables at a time.

Each kind of finding is one function from an :class:`Observation` to its findings, entered in ``DETECTORS``. The
functions work on columns and make objects only for what they report.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection
from dataclasses import dataclass

from nat_rewriter.detect.capacity import find_slice_exhausted, find_slice_pressure
from nat_rewriter.detect.collisions import (
    find_port_leaked,
    find_port_remapped,
    find_socket_untracked,
    find_tuple_shared,
)
from nat_rewriter.detect.entries import find_entry_orphaned, find_entry_stuck, find_flow_stranded
from nat_rewriter.detect.host import find_ephemeral_overlap, find_events_lost, find_ruleset_drift
from nat_rewriter.detect.observation import HostSettings, Loss, Observation
from nat_rewriter.detect.ownership import SliceIndex
from nat_rewriter.detect.sockets import find_foreign_bind, find_reply_captured
from nat_rewriter.detect.tracker import FindingTracker
from nat_rewriter.model.findings import Finding, Kind

__all__ = [
    "DETECTORS",
    "Detector",
    "FindingTracker",
    "HostSettings",
    "Loss",
    "Needs",
    "Observation",
    "SliceIndex",
    "find_findings",
]


class Needs(enum.Flag):
    """What a detection looks at, so that a look can leave out what nobody asked for."""

    FLOWS = enum.auto()
    SOCKETS = enum.auto()
    DRIFT = enum.auto()
    HOST = enum.auto()
    EVENTS = enum.auto()


@dataclass(frozen=True, slots=True)
class Detector:
    """How a kind is found. ``unsteady``: flows and sockets are not listed at once, so a second look decides."""

    find: Callable[[Observation], list[Finding]]
    needs: Needs
    unsteady: bool = False


_BOTH = Needs.FLOWS | Needs.SOCKETS

DETECTORS = {
    Kind.PORT_LEAKED: Detector(find_port_leaked, _BOTH),
    Kind.PORT_REMAPPED: Detector(find_port_remapped, _BOTH),
    Kind.TUPLE_SHARED: Detector(find_tuple_shared, _BOTH, unsteady=True),
    Kind.REPLY_CAPTURED: Detector(find_reply_captured, _BOTH | Needs.HOST, unsteady=True),
    Kind.SLICE_EXHAUSTED: Detector(find_slice_exhausted, Needs.FLOWS),
    Kind.RULESET_DRIFT: Detector(find_ruleset_drift, Needs.DRIFT),
    Kind.SOCKET_UNTRACKED: Detector(find_socket_untracked, _BOTH, unsteady=True),
    Kind.ENTRY_STUCK: Detector(find_entry_stuck, _BOTH),
    Kind.SLICE_PRESSURE: Detector(find_slice_pressure, Needs.FLOWS),
    Kind.FLOW_STRANDED: Detector(find_flow_stranded, Needs.FLOWS),
    Kind.EPHEMERAL_OVERLAP: Detector(find_ephemeral_overlap, Needs.HOST),
    Kind.FOREIGN_BIND: Detector(find_foreign_bind, Needs.SOCKETS),
    Kind.ENTRY_ORPHANED: Detector(find_entry_orphaned, _BOTH, unsteady=True),
    Kind.EVENTS_LOST: Detector(find_events_lost, Needs.EVENTS),
}


def find_findings(observation: Observation, kinds: Collection[Kind] | None = None) -> list[Finding]:
    """Return what is wrong, the worst kinds first; ``kinds`` limits it to some."""
    chosen = [detector for kind, detector in DETECTORS.items() if kinds is None or kind in kinds]
    return [finding for detector in chosen for finding in detector.find(observation)]
