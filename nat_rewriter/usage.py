"""How the slices are used, counted over whole flow tables at a time; and what the guard recorded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import ip_address

import numpy as np

from nat_rewriter.detect import Observation
from nat_rewriter.detect.ownership import NOBODY
from nat_rewriter.detect.uses import UseCount
from nat_rewriter.model.overview import DestinationUse, FlowCount, SliceFlows, Stray
from nat_rewriter.model.slices import Protocol
from nat_rewriter.model.tuples import FlowTuple

STRAY_TIMEOUT_S = 86400  # of the sets strays4 and strays6: nft_templates/sets.nft.j2
_NUMBERS = {Protocol.TCP: (6,), Protocol.UDP: (17,), Protocol.ICMP: (1, 58)}
_STATE = re.compile(r" (packets|bytes|timeout|expires) (\d+)s?")


def count_slices(observation: Observation) -> tuple[list[SliceFlows], int]:
    """Return every slice with its flows by protocol, and how many flows leave from its addresses and from no slice."""
    flows = observation.flows[observation.wire_rows]
    owners = observation.index.owners(observation.wire_numbers, flows["protocol"], flows["reply_dport"])
    owned = owners != NOBODY
    # One number for each (slice, protocol, origin), so that one pass counts all.
    numbers = (owners[owned] << 9) | (flows["protocol"][owned].astype(np.int64) << 1) | observation.forwarded[owned]
    counts = np.bincount(numbers, minlength=len(observation.slices) << 9).reshape(-1, 256, 2)
    uses = [
        SliceFlows(each, {protocol.value: _flow_count(counts[number], protocol) for protocol in each.protocols})
        for number, each in enumerate(observation.slices)
    ]
    return uses, len(owned) - int(np.count_nonzero(owned))


def _flow_count(counts: np.ndarray[tuple[int, ...], np.dtype[np.int64]], protocol: Protocol) -> FlowCount:
    local, forwarded = counts[list(_NUMBERS[protocol])].sum(axis=0)
    return FlowCount(int(forwarded), int(local))


def list_busiest(observation: Observation, most: int) -> list[DestinationUse]:
    """Return up to ``most`` destinations that use the largest share of a slice, the fullest first."""
    count = UseCount(observation.counted, observation.index)
    fullest = np.argsort(-count.used / np.maximum(count.capacities, 1), kind="stable")[:most]
    uses = sorted(count.uses(fullest), key=lambda use: use.used / max(use.capacity, 1), reverse=True)
    return [
        DestinationUse(
            observation.slices[use.slice_number].name,
            use.towards.protocol,
            use.towards.destination,
            use.used,
            use.capacity,
            use.findable,
            use.zone,
        )
        for use in uses
    ]


def list_strays(elements: Iterable[str]) -> list[Stray]:
    """Return what a set of strays holds, given its elements as nft spells them; the latest first."""
    return sorted(_strays(elements), key=lambda stray: (stray.last_seen_s is None, stray.last_seen_s))


def _strays(elements: Iterable[str]) -> Iterator[Stray]:
    for element in elements:
        key = element.partition(" counter ")[0].partition(" timeout ")[0].partition(" expires ")[0]
        protocol, src, sport, dst, dport = key.split(" . ")
        state = {word: int(number) for word, number in _STATE.findall(element)}
        left = state.get("expires")
        age = None if left is None else max(0, state.get("timeout", STRAY_TIMEOUT_S) - left)
        tuple_ = FlowTuple(protocol, ip_address(src), int(sport), ip_address(dst), int(dport))
        yield Stray(tuple_, state.get("packets", 0), state.get("bytes", 0), age)
