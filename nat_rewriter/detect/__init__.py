"""Detection: an observation in, findings out; pure, over whole tables at a time.

Each kind of finding is one function from an :class:`Observation` to its findings, entered in ``DETECTORS``. The
functions work on columns and make objects only for what they report.
"""

from __future__ import annotations

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
from nat_rewriter.model.needs import Needs

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


@dataclass(frozen=True, slots=True)
class Detector:
    """How a kind is found. ``unsteady``: flows and sockets are not listed at once, so a second look decides."""

    find: Callable[[Observation], list[Finding]]
    unsteady: bool = False


DETECTORS = {
    Kind.PORT_LEAKED: Detector(find_port_leaked),
    Kind.PORT_REMAPPED: Detector(find_port_remapped),
    Kind.TUPLE_SHARED: Detector(find_tuple_shared, unsteady=True),
    Kind.REPLY_CAPTURED: Detector(find_reply_captured, unsteady=True),
    Kind.SLICE_EXHAUSTED: Detector(find_slice_exhausted),
    Kind.RULESET_DRIFT: Detector(find_ruleset_drift),
    Kind.SOCKET_UNTRACKED: Detector(find_socket_untracked, unsteady=True),
    Kind.ENTRY_STUCK: Detector(find_entry_stuck),
    Kind.SLICE_PRESSURE: Detector(find_slice_pressure),
    Kind.FLOW_STRANDED: Detector(find_flow_stranded),
    Kind.EPHEMERAL_OVERLAP: Detector(find_ephemeral_overlap),
    Kind.FOREIGN_BIND: Detector(find_foreign_bind),
    Kind.ENTRY_ORPHANED: Detector(find_entry_orphaned, unsteady=True),
    Kind.EVENTS_LOST: Detector(find_events_lost),
}


def find_findings(observation: Observation, kinds: Collection[Kind] | None = None) -> list[Finding]:
    """Return what is wrong, the worst kinds first, each by slice and tuple; ``kinds`` limits it to some."""
    chosen = [detector for kind, detector in DETECTORS.items() if kinds is None or kind in kinds]
    return [finding for detector in chosen for finding in sorted(detector.find(observation), key=_place)]


def _place(finding: Finding) -> tuple[str, str, str, str]:
    """The kernel lists its tables in an order that means nothing."""
    return finding.slice or "", finding.protocol or "", str(finding.tuple or ""), finding.subject or ""
