"""Observation: one look at the kernel, judged by the configuration."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import numpy as np

from nat_rewriter.controller.gathering import Gathering
from nat_rewriter.controller.handed_on import without_handed_on
from nat_rewriter.detect import DETECTORS, HostSettings, Observation, SliceIndex, find_findings
from nat_rewriter.detect.questions import ask_again, ask_for_holders, each_once, with_flows, without_flows
from nat_rewriter.kernel.conntrack import find_flows
from nat_rewriter.kernel.conntrack_records import FLOW_DTYPE
from nat_rewriter.kernel.sieve import Sieve
from nat_rewriter.kernel.socket_dumps import dump_sockets
from nat_rewriter.kernel.sockets import SOCKET_DTYPE, find_owners
from nat_rewriter.kernel.sysctls import get_ephemeral_ports, has_tcp_early_demux, list_reserved_ports
from nat_rewriter.model.findings import Finding, FlowParty, Kind, Party, SocketParty
from nat_rewriter.model.needs import Needs
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.sockets import Owner

ALL_KINDS = frozenset(Kind)
PRESSURE = 0.8
# A socket is listed a moment before or after its entry is dumped; by then both have settled.
_SECOND_LOOK_AFTER_S = 0.05


def look_once(
    policy: Policy,
    kinds: Collection[Kind] = ALL_KINDS,
    pressure: float = PRESSURE,
    gathering: Gathering | None = None,
) -> list[Finding]:
    """Return what is wrong in this network namespace now; sockets are named with their processes.

    Sockets and entries cannot be listed in the same instant. What only the time between the two can explain is
    reported when a second look sees it again. ``gathering`` is what the look begins with, where that began before.
    Raises PermissionNeeded, NetlinkError, NftError.
    """
    first = observe(policy, kinds, pressure, gathering)
    found = find_findings(first, kinds)
    if any(is_unsteady(finding) for finding in found):
        time.sleep(_SECOND_LOOK_AFTER_S)
        found = confirmed(found, find_findings(_observe_again(first, found), kinds))
    return name_processes(without_handed_on(found, policy.controller.table))


def observe(
    policy: Policy,
    kinds: Collection[Kind] = ALL_KINDS,
    pressure: float = PRESSURE,
    gathering: Gathering | None = None,
) -> Observation:
    """Return what the kernel has now, as far as the kinds need it."""
    gathered = gathering or Gathering(policy, kinds)
    index, coexist = SliceIndex(policy.slices), policy.controller.coexist
    host = read_host_settings() if gathered.needs & Needs.HOST else HostSettings()
    tables = gathered.tables()
    seen = Observation(
        index,
        each_once(np.frombuffer(tables.flows, FLOW_DTYPE)),
        np.frombuffer(tables.sockets, SOCKET_DTYPE),
        coexist=coexist,
        drift=gathered.differences(),
        host=host,
        pressure=pressure,
        sifted=tables.sieve,
        tunnel_mark=tunnel_mark(policy),
    )
    return add_holders(seen, tables.sieve.zones()) if tables.sieve else seen


def tunnel_mark(policy: Policy) -> tuple[int, int]:
    """Return mark and mask of the flows of a tunnel."""
    return (policy.route.mark, policy.route.mask) if policy.route else (0, 0)


def add_holders(seen: Observation, zones: Collection[int]) -> Observation:
    """Return an observation with the flows that hold what flows and sockets of this host wanted.

    ``zones``: those that flows of the slices are in.
    """
    questions = list(ask_for_holders(seen, {0, *zones}))
    return with_flows(seen, find_flows(questions)) if questions else seen


def _observe_again(first: Observation, found: Iterable[Finding]) -> Observation:
    """Look again at the sockets, and at the entries that unsteady findings are about."""
    sockets = np.frombuffer(dump_sockets(), SOCKET_DTYPE)
    zones = {0, *(first.sifted.zones() if isinstance(first.sifted, Sieve) else ())}
    tuples = {finding.tuple for finding in found if finding.tuple and is_unsteady(finding)}
    rest = without_flows(replace(first, sockets=sockets), tuples)
    return add_holders(with_flows(rest, find_flows(ask_again(tuples, zones))), zones)


def read_host_settings() -> HostSettings:
    """Return the sysctls that detection depends on."""
    return HostSettings(get_ephemeral_ports(), list_reserved_ports(), has_tcp_early_demux())


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
