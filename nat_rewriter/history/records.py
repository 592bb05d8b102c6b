"""What history keeps of a flow, as packed records."""

from __future__ import annotations

import enum
import struct
from typing import Any

import numpy as np

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


def empty(count: int = 0) -> Records:
    """Return that many records of zeros."""
    return np.zeros(count, RECORD_DTYPE)


def joined(parts: list[Records]) -> Records:
    """Return records of several arrays as one. Part by part, as concatenate would keep other threads waiting."""
    whole = np.empty(sum(map(len, parts)), OPAQUE)
    at = 0
    for part in parts:
        whole[at : at + len(part)] = part.view(OPAQUE)
        at += len(part)
    return whole.view(RECORD_DTYPE)


def picked(records: Records, which: Column) -> Records:
    """Return ``records[which]``, fast."""
    return records.view(OPAQUE)[which].view(RECORD_DTYPE)


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
