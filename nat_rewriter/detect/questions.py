"""What a look has to ask the kernel once more: who holds the tuples that were wanted, and what became of a few entries.

Of a large table only those flows are kept that have to be seen one by one. Who else holds a tuple is found by asking
for that tuple: the kernel looks it up at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

import numpy as np

from nat_rewriter.detect.joins import untracked_rows
from nat_rewriter.detect.keys import group_rows, is_among, original_keys, tuple_keys
from nat_rewriter.detect.observation import Observation, Rows, picked
from nat_rewriter.detect.parties import original_tuple, reply_tuple, socket_tuple
from nat_rewriter.model.flows import ZoneDirection
from nat_rewriter.model.tuples import FlowTuple, Question

_PROTOCOL_OF = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58}


def ask_for_holders(observation: Observation, zones: Collection[int]) -> Iterator[Question]:
    """Yield the tuples that flows of this host wanted and did not get, and those of sockets that have no entry.

    A flow is in a zone; a socket may be in any of ``zones``.
    """
    for flow in picked(observation.local, observation.rewritten):
        zone = 0 if flow["zone_direction"] == ZoneDirection.ORIGINAL else int(flow["zone"])
        own, wire = original_tuple(flow), reply_tuple(flow)
        sport = own.sport if own.has_echo_id else wire.sport
        yield Question(FlowTuple(own.protocol, wire.src, sport, own.src, own.sport), zone)
    for socket in picked(observation.sockets, untracked_rows(observation)):
        yield from (Question(socket_tuple(socket).reversed(), zone) for zone in zones)


def ask_again(wanted: Collection[FlowTuple], zones: Collection[int]) -> Iterator[Question]:
    """Yield what tells whether flows with these original tuples, or the other way round, are still there."""
    for tuple_ in wanted:
        for zone in zones:
            yield Question(tuple_, zone, is_reply=False)
            if not tuple_.has_echo_id:
                yield Question(tuple_.reversed(), zone)


def with_flows(observation: Observation, found: Rows) -> Observation:
    """Return an observation with further flows; those it has already are not seen twice."""
    flows = np.concatenate([records.view(_opaque(records)) for records in (observation.flows, found)])
    return replace(observation, flows=each_once(flows.view(observation.flows.dtype)))


def without_flows(observation: Observation, wanted: Collection[FlowTuple]) -> Observation:
    """Return an observation without the flows that have one of these original tuples."""
    gone = is_among(original_keys(observation.flows), _keys_of(wanted))
    return replace(observation, flows=picked(observation.flows, ~gone))


def each_once(flows: Rows) -> Rows:
    """Return each entry once: while a table changes, the dump may have some twice."""
    return picked(flows, np.sort(group_rows(flows["key"])[0]))


def _opaque(records: Rows) -> np.dtype[np.void]:
    return np.dtype((np.void, records.dtype.itemsize))


def _keys_of(tuples: Collection[FlowTuple]) -> Rows:
    """Return the keys of tuples as ``original_keys`` has them; an echo id stands for both ports there."""
    rows = [
        (_PROTOCOL_OF[each.protocol], each.sport, each.sport if each.has_echo_id else each.dport) for each in tuples
    ]
    protocols, sports, dports = np.array(rows, np.uint64).reshape(-1, 3).T
    return tuple_keys(
        protocols, _halves([each.src for each in tuples]), sports, _halves([e.dst for e in tuples]), dports
    )


def _halves(addresses: Collection[object]) -> Rows:
    numbers = [int(address) for address in addresses]  # type: ignore[call-overload]
    return np.array([(number >> 64, number & (1 << 64) - 1) for number in numbers], np.uint64).reshape(-1, 2)
