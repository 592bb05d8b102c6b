"""Sightings: conntrack entries as records of history."""

from __future__ import annotations

import numpy as np

from nat_rewriter.detect.ownership import NOBODY, SliceIndex
from nat_rewriter.detect.placement import place_flows
from nat_rewriter.history.records import Column, EndMark, Records, Sighting, StartMark, Trait, empty
from nat_rewriter.model.flows import Present, Status


def sightings_of(flows: Column, index: SliceIndex, sightings: Column, times_ns: Column) -> Records:
    """Return the sightings of those flows (records of FLOW_FIELDS) that touch a slice, in their order.

    ``sightings`` and ``times_ns`` are of each flow: what was learnt, and when. Times that the kernel did not tell are
    taken from there, and marked so.
    """
    placement = place_flows(flows, index)
    touches = np.flatnonzero((placement.slices != NOBODY) | (placement.origins != 0))
    if len(touches) < len(flows):
        flows = flows.view(np.dtype((np.void, flows.dtype.itemsize)))[touches].view(flows.dtype)
    found = empty(len(flows))
    found["sighting"] = sightings[touches]
    found["slice"] = placement.slices[touches] + 1
    for field in ("zone", "id", "protocol", "family", "packets", "bytes"):
        found[field] = flows[field]
    found["flow"] = flows["key"]
    _write_ends(found, flows, index)
    _write_times(found, flows, times_ns[touches])
    found["traits"][flows["present"] & Present.COUNTERS != 0] |= int(Trait.COUNTED)
    return found


def _write_ends(found: Records, flows: Column, index: SliceIndex) -> None:
    """Write the three ends. What was addressed to a soft-unicast address, and does not leave from one, came in."""
    family = flows["family"]
    source = index.find_addresses(flows["orig_src"], family) != NOBODY
    inbound = ~source & (index.find_addresses(flows["reply_dst"], family) == NOBODY)
    outward = {"wire": ("reply_dst", "reply_dport"), "client": ("orig_src", "orig_sport")}
    outward["remote"] = ("reply_src", "reply_sport")
    inward = {"wire": ("orig_dst", "orig_dport"), "client": ("reply_src", "reply_sport")}
    inward["remote"] = ("orig_src", "orig_sport")
    for end, (address, port) in outward.items():
        inner_address, inner_port = inward[end]
        found[end] = np.where(inbound[:, None], flows[inner_address], flows[address])
        found[f"{end}_port"] = np.where(inbound, flows[inner_port], flows[port])
    local = source | (inbound & (flows["status"] & Status.DST_NAT == 0))
    found["traits"] = np.where(inbound, Trait.INBOUND, 0) | np.where(local, Trait.LOCAL, 0)


def _write_times(found: Records, flows: Column, now_ns: Column) -> None:
    sighting, told = found["sighting"], flows["present"] & Present.TIMESTAMP != 0
    started, stopped = told & (flows["start_ns"] != 0), told & (flows["stop_ns"] != 0)
    begins = (sighting == Sighting.OPENED) | (sighting == Sighting.SEEN)
    by_sight = np.where(sighting == Sighting.OPENED, StartMark.EVENT, StartMark.FIRST_SIGHT)
    found["start_ns"] = np.where(started, flows["start_ns"], np.where(begins, now_ns, 0))
    found["start_mark"] = np.where(started, StartMark.KERNEL, np.where(begins, by_sight, StartMark.UNKNOWN))
    by_event = np.where(sighting == Sighting.CLOSED, EndMark.EVENT, EndMark.SEEN_GONE)
    found["end_ns"] = np.where(begins, 0, np.where(stopped, flows["stop_ns"], now_ns))
    found["end_mark"] = np.where(begins, EndMark.OPEN, np.where(stopped, EndMark.KERNEL, by_event))
