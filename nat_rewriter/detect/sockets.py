"""Sockets that stand where they should not: on ports for rewriting, or in the way of forwarded replies."""

from __future__ import annotations

from typing import Any

import numpy as np

from nat_rewriter.detect.joins import NO_ROW
from nat_rewriter.detect.keys import first_match, original_keys, reply_keys, socket_keys
from nat_rewriter.detect.observation import TCP, UDP, Observation, Rows
from nat_rewriter.detect.ownership import NOBODY
from nat_rewriter.detect.parties import (
    flow_party,
    socket_party,
    socket_tuple,
)
from nat_rewriter.model.findings import Finding, Kind
from nat_rewriter.model.flows import TCP_STATES, address_from_halves
from nat_rewriter.model.policy import Coexist
from nat_rewriter.model.slices import Protocol, Slice
from nat_rewriter.model.sockets import SOCKET_STATES
from nat_rewriter.model.tuples import FlowTuple, endpoint_text, protocol_name

_SLICE_PROTOCOLS = {TCP: Protocol.TCP, UDP: Protocol.UDP}


def find_foreign_bind(observation: Observation) -> list[Finding]:
    """Sockets on ports that are for rewriting only; only a split slice has such ports."""
    if observation.coexist is not Coexist.SPLIT:
        return []
    rows, owners = _rewriting_sockets(observation)
    ends: dict[tuple[int, str], Finding] = {}
    for socket, owner in zip(observation.sockets[rows], owners, strict=True):
        if owner != NOBODY:
            key = int(socket["protocol"]), _end_text(socket)
            ends[key] = ends.get(key) or _foreign_bind(socket, observation.slices[owner])
    return list(ends.values())


def find_reply_captured(observation: Observation) -> list[Finding]:
    """Sockets with the tuple of a flow that is not theirs, so that early demux hands them its replies.

    The flow left un-rewritten from the socket's own tuple, yet the two disagree on how far the handshake is: the
    answer came, and the socket still waits for one, or the socket is connected, and nobody took the answer. A socket
    that is bound to a device is passed over by early demux.
    """
    if not observation.host.tcp_early_demux:
        return []
    sockets = observation.sockets[observation.connected_rows]
    sockets = sockets[(sockets["protocol"] == TCP) & (sockets["ifindex"] == 0)]
    flows = observation.local[
        ~observation.rewritten & (original_keys(observation.local) == reply_keys(observation.local))
    ]
    rows = first_match(socket_keys(sockets), original_keys(flows))
    pairs = [(socket, flows[row]) for socket, row in zip(sockets, rows, strict=True) if row != NO_ROW]
    return [_reply_captured(observation, socket, flow) for socket, flow in pairs if _disagree(socket, flow)]


def _rewriting_sockets(observation: Observation) -> tuple[Rows, Rows]:
    """Return the rows of sockets bound to a slice or to all addresses, and the slice that keeps their port, or NOBODY.

    Those without a peer come first: they speak for the connections they accepted.
    """
    sockets, waiting = observation.sockets, observation.waiting_rows
    everywhere = waiting[(sockets["src"][waiting] == 0).all(axis=1)]
    bound = np.concatenate((waiting[observation.socket_numbers[waiting] != NOBODY], observation.connected_rows))
    chosen = sockets[bound]
    owners = observation.index.rewriters(observation.socket_numbers[bound], chosen["protocol"], chosen["sport"])
    reached = [_slice_reached(observation, socket) for socket in sockets[everywhere]]
    return np.concatenate((everywhere, bound)), np.concatenate((np.array(reached, dtype=np.int64), owners))


def _slice_reached(observation: Observation, socket: Any) -> int:
    """Return the number of the first slice that keeps for rewriting the port of a socket on all addresses."""
    protocol, port = _SLICE_PROTOCOLS.get(int(socket["protocol"])), int(socket["sport"])
    for number, each in enumerate(observation.slices):
        # A socket on [::] takes IPv4 as well, unless it asked not to.
        reached = protocol in each.protocols and int(socket["family"]) >= each.address.version
        if reached and any(port in ports for ports in each.rewrite_ranges):
            return number
    return NOBODY


def _end_text(socket: Any) -> str:
    return endpoint_text(address_from_halves(socket["src"], socket["family"]), int(socket["sport"]))


def _foreign_bind(socket: Any, owner: Slice) -> Finding:
    end, protocol = _end_text(socket), protocol_name(int(socket["protocol"]))
    return Finding(
        Kind.FOREIGN_BIND,
        f"A {protocol} socket is bound to {end}, a port of slice {owner.name} that is for rewriting only.",
        f"Bind it to one of socket_ports of slice {owner.name}, or add its port to them.",
        slice=owner.name,
        protocol=protocol,
        holder=socket_party(socket),
        subject=end,
        extra={"bound": end},
    )


def _disagree(socket: Any, flow: Any) -> bool:
    waits = SOCKET_STATES[socket["state"]] == "SYN_SENT"
    state = TCP_STATES[flow["tcp_state"]] if flow["tcp_state"] < len(TCP_STATES) else ""
    answered = state in ("SYN_RECV", "ESTABLISHED")
    return (waits and answered) or (SOCKET_STATES[socket["state"]] == "ESTABLISHED" and state == "SYN_RECV")


def _reply_captured(observation: Observation, socket: Any, flow: Any) -> Finding:
    taken: FlowTuple = socket_tuple(socket)
    numbers = observation.index.find_addresses(flow["orig_src"].reshape(1, 2), flow["family"].reshape(1))
    owner = observation.index.owners(numbers, flow["protocol"].reshape(1), flow["orig_sport"].reshape(1))[0]
    return Finding(
        Kind.REPLY_CAPTURED,
        f"The local socket {taken.source} takes the replies that {taken.destination} sends to a forwarded "
        f"flow with the same tuple.",
        "Run natctl route apply with an answer to early demux in [route], or bind the socket to the device lo with "
        "SO_BINDTODEVICE.",
        slice=observation.index.slice_name(int(owner)),
        protocol=taken.protocol,
        tuple=taken,
        victim=flow_party(flow, local=False),
        holder=socket_party(socket),
    )
