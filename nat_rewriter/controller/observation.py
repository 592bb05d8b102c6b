"""Observation: one look at the kernel, judged by the configuration."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from nat_rewriter.controller.intent import read_drift
from nat_rewriter.detect import DETECTORS, HostSettings, Needs, Observation, SliceIndex, find_findings
from nat_rewriter.detect.observation import no_flows, no_sockets
from nat_rewriter.kernel.conntrack import dump
from nat_rewriter.kernel.sockets import find_owners, list_sockets
from nat_rewriter.kernel.sysctls import get_ephemeral_ports, has_tcp_early_demux, list_reserved_ports
from nat_rewriter.model.findings import Finding, FlowParty, Kind, Party, SocketParty
from nat_rewriter.model.needs import needs_of
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.sockets import Owner

ALL_KINDS = frozenset(Kind)
PRESSURE = 0.8
# A socket is listed a moment before or after its entry is dumped; by then both have settled.
_SECOND_LOOK_AFTER_S = 0.05


def look_once(policy: Policy, kinds: Collection[Kind] = ALL_KINDS, pressure: float = PRESSURE) -> list[Finding]:
    """Return what is wrong in this network namespace now; sockets are named with their processes.

    Sockets and entries cannot be listed in the same instant. What only the time between the two can explain is
    reported when a second look sees it again. Raises PermissionNeeded, NetlinkError, NftError.
    """
    first = observe(policy, kinds, pressure)
    found = find_findings(first, kinds)
    if any(is_unsteady(finding) for finding in found):
        time.sleep(_SECOND_LOOK_AFTER_S)
        found = confirmed(found, find_findings(_observe_again(first), kinds))
    return name_processes(found)


def observe(policy: Policy, kinds: Collection[Kind] = ALL_KINDS, pressure: float = PRESSURE) -> Observation:
    """Return what the kernel has now, as far as the kinds need it."""
    needs = needs_of(kinds)
    index, coexist = SliceIndex(policy.slices), policy.controller.coexist
    # Listing a ruleset is work for another process: it is done meanwhile. The thread is in the same namespace.
    with ThreadPoolExecutor(max_workers=1) as beside:
        drift = beside.submit(read_differences, policy) if needs & Needs.DRIFT else None
        host = read_host_settings() if needs & Needs.HOST else HostSettings()
        # Sockets first: the entry of a socket that is listed was made by the time the table is dumped.
        sockets = list_sockets() if needs & Needs.SOCKETS else no_sockets()
        flows = dump() if needs & Needs.FLOWS else no_flows()
        differences = tuple(drift.result()) if drift else ()
    return Observation(index, flows, sockets, coexist=coexist, drift=differences, host=host, pressure=pressure)


def _observe_again(first: Observation) -> Observation:
    sockets = list_sockets()
    return replace(first, sockets=sockets, flows=dump())


def read_host_settings() -> HostSettings:
    """Return the sysctls that detection depends on."""
    return HostSettings(get_ephemeral_ports(), list_reserved_ports(), has_tcp_early_demux())


def read_differences(policy: Policy) -> list[str]:
    """Return how the live table differs from the configuration, without the frame that a diff has around it."""
    lines = (line for line in read_drift(policy) if not line.startswith(("---", "+++", "@@", " ")))
    return [f"{line[:1]} {line[1:].strip()}" for line in lines]


def is_unsteady(finding: Finding) -> bool:
    """Tell whether a finding may be due to sockets and entries having been listed one after the other."""
    without_socket = isinstance(finding.victim, FlowParty) and finding.kind in (Kind.PORT_LEAKED, Kind.PORT_REMAPPED)
    return DETECTORS[finding.kind].unsteady or without_socket


def confirmed(found: Iterable[Finding], again: Iterable[Finding]) -> list[Finding]:
    """Return the findings of the second look, without the unsteady ones that the first did not have."""
    seen = {finding.identity for finding in found}
    return [finding for finding in again if not DETECTORS[finding.kind].unsteady or finding.identity in seen]


def name_processes(findings: list[Finding]) -> list[Finding]:
    """Return the findings with process id and command of each socket, where /proc tells."""
    parties = [party for finding in findings for party in (finding.victim, finding.holder)]
    inodes = {party.inode for party in parties if isinstance(party, SocketParty) and party.inode}
    owners = find_owners(inodes)
    if not owners:
        return findings
    return [
        replace(finding, victim=_named(finding.victim, owners), holder=_named(finding.holder, owners))
        for finding in findings
    ]


def name_socket(party: SocketParty) -> SocketParty:
    """Return a socket with process id and command, where /proc tells."""
    owner = find_owners([party.inode] if party.inode else []).get(party.inode or 0)
    return replace(party, pid=owner.pid, command=owner.command) if owner else party


def _named(party: Party | None, owners: Mapping[int, Owner]) -> Party | None:
    owner = owners.get(party.inode or 0) if isinstance(party, SocketParty) else None
    if owner is None or not isinstance(party, SocketParty):
        return party
    return replace(party, pid=owner.pid, command=owner.command)
