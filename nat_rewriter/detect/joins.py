"""Joins of flows with flows and flows with sockets: who holds a tuple, and whose socket it is."""

from __future__ import annotations

import numpy as np

from nat_rewriter.detect.keys import first_match, mix, original_keys, reply_keys, socket_keys, tuple_keys
from nat_rewriter.detect.observation import UDP, Observation, Rows, picked
from nat_rewriter.detect.parties import IS_PORTLESS

NO_ROW = -1


def untracked_sockets(observation: Observation) -> tuple[Rows, Rows]:
    """Return the rows of connected sockets of a slice that have no entry, and the row of the flow that is in their way.

    A flow that the socket began has the socket's tuple as its original one; a flow that it accepted has it, read
    backwards, as its original one: the peer's packets are addressed to the socket. A NAT flow has it in its reply.
    """
    rows = untracked_rows(observation)
    keys = socket_keys(observation.sockets[rows])
    return rows, _wire_holders(observation, keys, observation.sockets["sport"][rows])


def untracked_rows(observation: Observation) -> Rows:
    """Return the rows of connected sockets of a slice that have no entry."""
    rows = observation.connected_rows
    if not len(rows):
        return rows
    sockets = observation.sockets[rows]
    own = first_match(socket_keys(sockets), original_keys(observation.local)) != NO_ROW
    accepted = first_match(_peer_keys(sockets), original_keys(_flows_to(observation, sockets))) != NO_ROW
    untracked: Rows = rows[~own & ~accepted]
    return untracked


def holders_of(observation: Observation, wanted: Rows) -> Rows:
    """Return for each rewritten local flow the row of the flow that uses on the wire the tuple it wanted, or NO_ROW."""
    rows = _rows_with_wire_port(observation, wanted["orig_sport"])
    flows = observation.flows[rows]
    zoned = mix(reply_keys(flows), flows["zone"])
    tuples = tuple_keys(
        wanted["protocol"], wanted["orig_src"], wanted["orig_sport"], wanted["reply_src"], wanted["reply_sport"]
    )
    # ICMP has no port of its own at the far end: the id is both, and the id that was wanted is the original one.
    portless = IS_PORTLESS[wanted["protocol"]]
    echo = tuple_keys(
        wanted["protocol"], wanted["orig_src"], wanted["orig_sport"], wanted["reply_src"], wanted["orig_sport"]
    )
    return _rows_of(rows, first_match(mix(np.where(portless, echo, tuples), wanted["zone"]), zoned))


def sockets_of(observation: Observation, flows: Rows) -> Rows:
    """Return for each local flow the row of its socket: the connected one, else one bound to its port, else NO_ROW."""
    sockets = observation.sockets
    connected = first_match(original_keys(flows), socket_keys(sockets))
    bound = _bound_sockets(observation, flows)
    return np.where(connected == NO_ROW, bound, connected)


def _rows_with_wire_port(observation: Observation, ports: Rows) -> Rows:
    """Return the rows of flows whose wire port is one of ``ports``: a cheap cut before keys are computed."""
    asked = np.zeros(1 << 16, dtype=bool)
    asked[ports] = True
    rows = observation.wire_rows
    cut: Rows = rows[asked[observation.flows["reply_dport"][rows]]]
    return cut


def _wire_holders(observation: Observation, keys: Rows, ports: Rows) -> Rows:
    rows = _rows_with_wire_port(observation, ports)
    return _rows_of(rows, first_match(keys, reply_keys(observation.flows[rows])))


def _rows_of(rows: Rows, places: Rows) -> Rows:
    if not len(rows):
        return places
    return np.where(places == NO_ROW, NO_ROW, rows[places])


def _flows_to(observation: Observation, sockets: Rows) -> Rows:
    """Return the flows whose first packet was addressed to the port of one of the sockets."""
    asked = np.zeros(1 << 16, dtype=bool)
    asked[sockets["sport"]] = True
    return picked(observation.flows, asked[observation.flows["orig_dport"]])


def _peer_keys(sockets: Rows) -> Rows:
    return tuple_keys(sockets["protocol"], sockets["dst"], sockets["dport"], sockets["src"], sockets["sport"])


def _bound_sockets(observation: Observation, flows: Rows) -> Rows:
    """Return for each flow the row of an unconnected UDP socket on its port: on its address, else on all addresses."""
    rows = observation.waiting_rows[observation.sockets["protocol"][observation.waiting_rows] == UDP]
    sockets = observation.sockets[rows]
    keys = mix(sockets["protocol"], sockets["sport"], sockets["src"][:, 0], sockets["src"][:, 1])
    zero = np.zeros_like(flows["orig_src"][:, 0])
    exact = mix(flows["protocol"], flows["orig_sport"], flows["orig_src"][:, 0], flows["orig_src"][:, 1])
    wildcard = mix(flows["protocol"], flows["orig_sport"], zero, zero)
    on_address, on_all = _rows_of(rows, first_match(exact, keys)), _rows_of(rows, first_match(wildcard, keys))
    return np.where(on_address == NO_ROW, on_all, on_address)
