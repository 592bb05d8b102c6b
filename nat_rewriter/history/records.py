"""What history keeps of a flow, as packed records, and how conntrack entries become such records."""

from __future__ import annotations

import enum
import struct
from typing import Any

import numpy as np

from nat_rewriter.detect.ownership import NOBODY, SliceIndex
from nat_rewriter.detect.placement import place_flows
from nat_rewriter.model.flows import Present, Status

Records = np.ndarray[Any, np.dtype[np.void]]
Column = np.ndarray[Any, np.dtype[Any]]

# Addresses as in FLOW_FIELDS: two 64-bit halves, high first. 144 bytes.
RECORD_FIELDS: list[Any] = [
    ("flow", "u8"),  # keyed hash of the original tuple; with the start it names one flow in all parts
    ("wire", "u8", 2),  # the soft-unicast end, as the far end sees it
    ("client", "u8", 2),  # the end behind it: a client, or this host
    ("remote", "u8", 2),
    ("packets", "u8", 2),  # of the original and the reply direction
    ("bytes", "u8", 2),
    ("start_ns", "u8"),
    ("end_ns", "u8"),
    ("wire_port", "u2"),  # ports, or the echo id
    ("client_port", "u2"),
    ("remote_port", "u2"),
    ("protocol", "u1"),
    ("family", "u1"),  # 4 or 6
    ("sighting", "u1"),  # Sighting; 0 in merged records
    ("start_mark", "u1"),  # StartMark
    ("end_mark", "u1"),  # EndMark
    ("traits", "u1"),  # Trait
    ("zone", "u2"),
    ("slice", "u2"),  # 1 + its number in the list of the part; 0: none
    ("id", "u4"),
    ("pid", "u4"),  # of the local socket's process; 0: not known
    ("command", "S16"),
]
RECORD_DTYPE = np.dtype(RECORD_FIELDS)
# Whole records are copied as opaque bytes: numpy copies a structured type field by field, fifteen times slower.
OPAQUE = np.dtype((np.void, RECORD_DTYPE.itemsize))
_KEY = struct.Struct(">BQQHB")
_HALF = (1 << 64) - 1


class Sighting(enum.IntEnum):
    """What was learnt of a flow."""

    OPENED = 1  # it began just then
    SEEN = 2  # it was there
    CLOSED = 3  # it ended just then
    GONE = 4  # it was there no longer


class StartMark(enum.IntEnum):
    """How the start of a flow is known."""

    UNKNOWN = 0  # only its end was seen; the start is written as the same
    KERNEL = 1  # conntrack's own timestamp
    EVENT = 2  # when its first event was read
    FIRST_SIGHT = 3  # it began at this time or before

    @property
    def word(self) -> str:
        """Return the mark as it is printed."""
        return self.name.lower().replace("_", "-")


class EndMark(enum.IntEnum):
    """How the end of a flow is known."""

    OPEN = 0  # it has none yet
    KERNEL = 1
    EVENT = 2
    SEEN_GONE = 3  # it ended at this time or before
    RECORDING_ENDED = 4  # it was there at this time, and nobody watched from then on

    @property
    def word(self) -> str:
        """Return the mark as it is printed."""
        return self.name.lower().replace("_", "-")


class Trait(enum.IntFlag):
    """What kind of flow it was."""

    LOCAL = 1  # this host was its inner end; otherwise it was forwarded
    INBOUND = 2  # it was begun by the remote
    COUNTED = 4  # packets and bytes are known
    CARRIED = 8  # it began in an earlier part


def empty(count: int = 0) -> Records:
    """Return that many records of zeros."""
    return np.zeros(count, RECORD_DTYPE)


def joined(parts: list[Records]) -> Records:
    """Return records of several arrays as one."""
    return np.concatenate([part.view(OPAQUE) for part in parts] or [np.empty(0, OPAQUE)]).view(RECORD_DTYPE)


def picked(records: Records, which: Column) -> Records:
    """Return ``records[which]``, fast."""
    return records.view(OPAQUE)[which].view(RECORD_DTYPE)


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


def key_bytes(family: int, address: int, port: int, protocol: int) -> bytes:
    """Return the bytes that sort one end: family, address, port, protocol."""
    return _KEY.pack(family, address >> 64, address & _HALF, port, protocol)


def key_of(record: Any, end: str) -> bytes:
    """Return the same of one end of a record."""
    high, low = record[end].tolist()
    return _KEY.pack(record["family"], high, low, record[f"{end}_port"], record["protocol"])


def order_by(records: Records, end: str) -> Column:
    """Return the order of records by family, address, port and protocol of one end."""
    place = (records[f"{end}_port"].astype(np.uint64) << np.uint64(8)) | records["protocol"]
    if (records["family"] == 4).all():  # all of it fits in one number
        order: Column = np.argsort((records[end][:, 1] << np.uint64(24)) | place)
    else:
        order = np.lexsort((place, records[end][:, 1], records[end][:, 0], records["family"]))
    return order
