"""Conntrack entries as numpy records: their type and keys, the decoder for bytes at hand, filters for the C core."""

from __future__ import annotations

import os
import struct
from typing import Any, NamedTuple

import numpy as np

from nat_rewriter.kernel import netlink
from nat_rewriter.kernel._core._native import ffi, lib
from nat_rewriter.kernel.conntrack_requests import FlowFilter, TupleFilter, protocol_number
from nat_rewriter.model.flows import FLOW_FIELDS
from nat_rewriter.model.slices import Address

FLOW_DTYPE = np.dtype(FLOW_FIELDS)
Records = np.ndarray[Any, np.dtype[np.void]]
# Keys are compared within one process only: a dump and the events that go with it share this seed.
SEED = struct.unpack("=2Q", os.urandom(16))


class Decoded(NamedTuple):
    """The records of some bytes, and what else was met in them."""

    records: Records
    done: bool
    interrupted: bool
    overrun: bool
    error: int  # errno that the kernel answered, or 0
    unknown_attributes: int
    foreign_messages: int


def decode(data: bytes, *, events: bool = False, seed: tuple[int, int] = (0, 0)) -> Decoded:
    """Return the entries of one ctnetlink datagram; with ``events`` new entries and changes are told apart.

    Raises DecodeError for bytes that the kernel does not write.
    """
    context = ffi.new("struct nr_context *", {"seed": seed, "events": events})
    records = np.empty(len(data) // lib.NLMSG_HDRLEN + 1, FLOW_DTYPE)
    progress = ffi.new("struct nr_progress *")
    with ffi.from_buffer("struct nr_flow[]", records.view("u1"), require_writable=True) as buffer:
        problem = lib.nr_decode_flows(data, len(data), context, buffer, len(records), progress)
    if problem:
        raise netlink.decode_error("decode conntrack messages", problem, progress.offset)
    return Decoded(
        records[: progress.records],
        bool(progress.flags & (lib.NR_DONE | lib.NR_ANSWERED)),
        bool(progress.flags & lib.NR_INTERRUPTED),
        bool(progress.flags & lib.NR_OVERRUN),
        progress.error,
        progress.unknown_attributes,
        progress.foreign_messages,
    )


def filter_fields(wanted: FlowFilter) -> dict[str, Any]:
    """Return struct nr_filter as cffi fills it: every part of the filter, whatever the kernel does."""
    fields, record = 0, {}
    given = {
        "family": wanted.wanted_family,
        "protocol": None if wanted.protocol is None else protocol_number(wanted.protocol),
        "zone": wanted.zone,
        **{f"orig_{name}": value for name, value in _parts(wanted.original).items()},
        **{f"reply_{name}": value for name, value in _parts(wanted.reply).items()},
    }
    for name, value in given.items():
        if value is not None:
            fields |= getattr(lib, f"NR_MATCH_{name.upper()}")
            record[name] = value
    status_mask, mark_mask = wanted.wanted_status_mask, 0 if wanted.mark is None else wanted.mark_mask
    record["status"] = (wanted.status or 0) & status_mask
    record["mark"] = (wanted.mark or 0) & mark_mask
    return {"fields": fields, "status_mask": status_mask, "mark_mask": mark_mask, "wanted": record}


def _parts(wanted: TupleFilter) -> dict[str, Any]:
    return {
        "src": _halves(wanted.src),
        "sport": wanted.sport,
        "dst": _halves(wanted.dst),
        "dport": wanted.dport,
    }


def _halves(address: Address | None) -> list[int] | None:
    return None if address is None else [int(address) >> 64, int(address) & (1 << 64) - 1]
