"""Conntrack entries that outlived what they were made for."""

from __future__ import annotations

from typing import Any

import numpy as np

from nat_rewriter.detect.endings import deletion
from nat_rewriter.detect.joins import NO_ROW, holders_of, sockets_of
from nat_rewriter.detect.keys import byte_flags
from nat_rewriter.detect.observation import PORTED, TCP, Observation, Rows
from nat_rewriter.detect.ownership import NOBODY
from nat_rewriter.detect.parties import flow_party, original_tuple, port_word, reply_tuple, socket_party
from nat_rewriter.model.findings import Finding, Kind, Party
from nat_rewriter.model.flows import TCP_STATES, Present, Status

# The ordinary afterlife of every connection, which the kernel ends within two minutes by itself; and entries that no
# packet made but a program, such as those of leases, which looks after them.
_WITHOUT_SOCKET = byte_flags(TCP_STATES.index(name) for name in ("TIME_WAIT", "CLOSE", "LAST_ACK", "NONE"))


def find_entry_orphaned(observation: Observation) -> list[Finding]:
    """Entries of local flows in a slice that no socket belongs to any more; flows of a tunnel never had one."""
    local, protocols = observation.local, observation.local["protocol"]
    excused = (protocols == TCP) & _WITHOUT_SOCKET[local["tcp_state"]]
    rows = (observation.local_slices != NOBODY) & PORTED[protocols] & ~excused
    asked = np.flatnonzero(rows & ~observation.tunnelled)
    orphans = asked[sockets_of(observation, local[asked]) == NO_ROW]
    return [_orphaned(observation, row) for row in orphans]


def find_entry_stuck(observation: Observation) -> list[Finding]:
    """Rewritten local flows that were never answered, though nobody holds the port they wanted any more."""
    unanswered = (observation.local["status"] & Status.SEEN_REPLY) == 0
    rows = np.flatnonzero(observation.rewritten & unanswered & _retried(observation.local))
    stuck = rows[holders_of(observation, observation.local[rows]) == NO_ROW]
    victims = sockets_of(observation, observation.local[stuck])
    return [_stuck(observation, row, victim) for row, victim in zip(stuck, victims, strict=True)]


def find_flow_stranded(observation: Observation) -> list[Finding]:
    """NAT flows on a port of a soft-unicast address that no slice of this host owns."""
    rows = observation.wire_rows
    flows = observation.flows
    owners = observation.index.owners(observation.wire_numbers, flows["protocol"][rows], flows["reply_dport"][rows])
    astray = flows[rows[observation.forwarded & (owners == NOBODY)]]
    return [_stranded(flow) for flow in astray[(astray["status"] & Status.SRC_NAT) != 0]]


def _retried(flows: Rows) -> Rows:
    """Tell of each flow whether more than one packet went out; where nobody counted them, believe it did."""
    counted = (flows["present"] & Present.COUNTERS) != 0
    retried: Rows = ~counted | (flows["packets"][:, 0] > 1)
    return retried


def _orphaned(observation: Observation, row: int) -> Finding:
    flow: Any = observation.local[row]
    own = original_tuple(flow)
    left = f" for another {int(flow['timeout_s'])} s" if flow["present"] & Present.TIMEOUT else ""
    return Finding(
        Kind.ENTRY_ORPHANED,
        f"The socket {own.source} to {own.destination} is gone, but its conntrack entry still occupies "
        f"{port_word(own)} {own.sport} to that destination{left}.",
        f"Wait until the entry ends, or end it with {deletion(own)}.",
        slice=observation.index.slice_name(int(observation.local_slices[row])),
        protocol=own.protocol,
        tuple=own,
        holder=flow_party(flow, local=True),
    )


def _stuck(observation: Observation, row: int, socket_row: int) -> Finding:
    flow: Any = observation.local[row]
    own, wire = original_tuple(flow), reply_tuple(flow)
    return Finding(
        Kind.ENTRY_STUCK,
        f"The unanswered entry of {own.source} to {own.destination} keeps rewriting it to {port_word(own)} "
        f"{wire.dport}, although {port_word(own)} {own.sport} is free again: each retry keeps the entry alive.",
        f"End the entry with {deletion(own)}: the next retry then keeps its port.",
        slice=observation.index.slice_name(int(observation.local_slices[row])),
        protocol=own.protocol,
        tuple=own,
        wire_sport=wire.dport,
        victim=_victim(observation, flow, socket_row),
        extra={"entry_id": int(flow["id"]), **({"zone": int(flow["zone"])} if flow["zone"] else {})},
    )


def _victim(observation: Observation, flow: Any, socket_row: int) -> Party:
    """Return the socket of a local flow, the flow itself where its socket is gone."""
    if socket_row == NO_ROW:
        return flow_party(flow, local=True)
    return socket_party(observation.sockets[socket_row])


def _stranded(flow: Any) -> Finding:
    own, wire = original_tuple(flow), reply_tuple(flow).reversed()
    return Finding(
        Kind.FLOW_STRANDED,
        f"The NAT flow of {own.source} to {own.destination} leaves from {wire.source}, which no "
        f"slice of this host owns: its replies go elsewhere.",
        f"Give the port back to a slice of this host until the flow has ended, or end it with {deletion(own)}.",
        protocol=own.protocol,
        tuple=own,
        wire_sport=wire.sport,
        holder=flow_party(flow, local=False),
    )
