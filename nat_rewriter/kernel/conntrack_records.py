"""Conntrack entries as numpy records: their type, and the decoder for bytes at hand."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nat_rewriter.kernel import netlink
from nat_rewriter.kernel._core._native import ffi, lib
from nat_rewriter.model.flows import FLOW_FIELDS

FLOW_DTYPE = np.dtype(FLOW_FIELDS)
Records = np.ndarray[Any, np.dtype[np.void]]


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
