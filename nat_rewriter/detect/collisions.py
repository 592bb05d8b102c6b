"""Two claims to one 5-tuple: what became of the local sockets that met a NAT flow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from nat_rewriter.detect.endings import deletion
from nat_rewriter.detect.joins import NO_ROW, holders_of, sockets_of, untracked_sockets
from nat_rewriter.detect.observation import Observation, Rows
from nat_rewriter.detect.ownership import NOBODY
from nat_rewriter.detect.parties import (
    flow_party,
    original_tuple,
    port_word,
    reply_tuple,
    socket_party,
    socket_tuple,
)
from nat_rewriter.model.findings import Finding, FlowParty, Kind, Party
from nat_rewriter.model.policy import Coexist
from nat_rewriter.model.tuples import FlowTuple, endpoint_text


def find_port_leaked(observation: Observation) -> list[Finding]:
    """Local flows whose port was rewritten to one outside every slice."""
    leaked = observation.rewritten & (_wire_slices(observation) == NOBODY)
    return list(_rewritten_findings(observation, Kind.PORT_LEAKED, np.flatnonzero(leaked)))


def find_port_remapped(observation: Observation) -> list[Finding]:
    """Local flows whose port was rewritten to another one of a slice."""
    remapped = observation.rewritten & (_wire_slices(observation) != NOBODY)
    return list(_rewritten_findings(observation, Kind.PORT_REMAPPED, np.flatnonzero(remapped)))


def find_tuple_shared(observation: Observation) -> list[Finding]:
    """Connected sockets without an entry of their own whose tuple a NAT flow uses on the wire."""
    rows, holders = untracked_sockets(observation)
    return [
        _tuple_shared(observation, observation.sockets[row], int(holder))
        for row, holder in zip(rows, holders, strict=True)
        if holder != NO_ROW
    ]


def find_socket_untracked(observation: Observation) -> list[Finding]:
    """Connected sockets of a slice that have no conntrack entry, and whose tuple is still free."""
    rows, holders = untracked_sockets(observation)
    return [
        _socket_untracked(observation, observation.sockets[row])
        for row, holder in zip(rows, holders, strict=True)
        if holder == NO_ROW
    ]


def _wire_slices(observation: Observation) -> Rows:
    local, index = observation.local, observation.index
    numbers = index.find_addresses(local["reply_dst"], local["family"])
    return index.owners(numbers, local["protocol"], local["reply_dport"])


def _rewritten_findings(observation: Observation, kind: Kind, chosen: Rows) -> Iterator[Finding]:
    if not len(chosen):
        return
    flows = observation.local[chosen]
    owners = observation.local_slices[chosen]
    slices = np.where(owners == NOBODY, _wire_slices(observation)[chosen], owners)
    holders = holders_of(observation, flows)
    victims = sockets_of(observation, flows)
    for flow, number, holder, victim in zip(flows, slices, holders, victims, strict=True):
        yield _rewritten_finding(observation, kind, flow, int(number), int(holder), int(victim))


def _rewritten_finding(
    observation: Observation, kind: Kind, flow: Any, slice_number: int, holder_row: int, victim: int
) -> Finding:
    wanted, wire = original_tuple(flow), reply_tuple(flow)
    holder = None if holder_row == NO_ROW else flow_party_at(observation, holder_row)
    socket = None if victim == NO_ROW else socket_party(observation.sockets[victim])
    sufferer: Party = socket or flow_party(flow, local=True)
    return Finding(
        kind,
        _rewritten_message(kind, wanted, wire, holder),
        _rewritten_remedy(kind, observation.coexist, wanted),
        slice=observation.index.slice_name(slice_number),
        protocol=wanted.protocol,
        tuple=wanted,
        wire_sport=wire.dport,
        victim=sufferer,
        holder=holder,
        subject=f"zone {flow['zone']}" if flow["zone"] else None,
    )


def _rewritten_message(kind: Kind, wanted: FlowTuple, wire: FlowTuple, holder: FlowParty | None) -> str:
    where = "outside every slice of this host" if kind is Kind.PORT_LEAKED else "another one of the slice"
    because = ""
    if holder:
        because = (
            f", because {_holder_text(wanted, holder)} holds {port_word(wanted)} {wanted.sport} to that destination"
        )
    return (
        f"The local socket {wanted.source} talks to {wanted.destination} from {port_word(wanted)} "
        f"{wire.dport}, {where}{because}."
    )


def _holder_text(wanted: FlowTuple, holder: FlowParty) -> str:
    source = f"{holder.src} id {holder.sport}" if wanted.has_echo_id else holder.source
    return f"the {'local' if holder.type == 'local-flow' else 'NAT'} flow of {source}"


def _rewritten_remedy(kind: Kind, coexist: Coexist, wanted: FlowTuple) -> str:
    if kind is Kind.PORT_REMAPPED:
        return (
            "Nothing is lost; where an application must see the port that is on the wire, set "
            'coexist = "refuse" or "split" under [controller] and run natctl apply.'
        )
    kept = "which keeps its wrong port for up to 120 s while nobody answers"
    if coexist is Coexist.OFF:
        return (
            'Set coexist = "confine" under [controller] and run natctl apply, end the entry, '
            f"{kept}, with {deletion(wanted)}, then have the application connect again."
        )
    return (
        f"Run natctl diff to see whether the rules are in force, then end the entry, {kept}, with {deletion(wanted)}."
    )


def _tuple_shared(observation: Observation, socket: Any, holder_row: int) -> Finding:
    shared = socket_tuple(socket)
    holder = flow_party_at(observation, holder_row)
    return Finding(
        Kind.TUPLE_SHARED,
        f"The local socket {shared.source} to {shared.destination} has no conntrack entry, and "
        f"{_holder_text(shared, holder)} now uses the same tuple: the socket's next packet leaves from another port.",
        'Close the socket or end the NAT flow; coexist = "split" under [controller] keeps ports for sockets alone.',
        slice=_socket_slice(observation, socket),
        protocol=shared.protocol,
        tuple=shared,
        victim=socket_party(socket),
        holder=holder,
    )


def _socket_untracked(observation: Observation, socket: Any) -> Finding:
    own = socket_tuple(socket)
    return Finding(
        Kind.SOCKET_UNTRACKED,
        f"The local socket {own.source} to {own.destination} has no conntrack entry: a NAT flow to "
        f"{endpoint_text(own.dst, own.dport)} may take its port.",
        'Let the socket send a packet, or set coexist = "split" under [controller] to keep rewriting off its port.',
        slice=_socket_slice(observation, socket),
        protocol=own.protocol,
        tuple=own,
        victim=socket_party(socket),
    )


def _socket_slice(observation: Observation, socket: Any) -> str | None:
    row = socket.reshape(1)
    numbers = observation.index.find_addresses(row["src"], row["family"])
    return observation.index.slice_name(int(observation.index.owners(numbers, row["protocol"], row["sport"])[0]))


def flow_party_at(observation: Observation, row: int) -> FlowParty:
    """Return the flow in a row as a party: a local flow where its original source is a soft-unicast address."""
    flow = observation.flows[row : row + 1]
    number = observation.index.find_addresses(flow["orig_src"], flow["family"])[0]
    return flow_party(flow[0], local=bool(number != NOBODY))
