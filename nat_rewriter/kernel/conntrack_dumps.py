"""Dumps of the conntrack table as they are asked for: filtered by the kernel as far as it can, by the C core else.

Nothing here needs numpy, so that a dump can be under way while it is still being imported.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nat_rewriter.errors import NetlinkError, UnsupportedFeature
from nat_rewriter.kernel import netlink
from nat_rewriter.kernel._core._native import ffi, lib
from nat_rewriter.kernel.conntrack_requests import (
    FlowFilter,
    TupleFilter,
    conntrack_message,
    filter_attributes,
    protocol_number,
)
from nat_rewriter.kernel.head_start import DUMP, FLOW_BYTES, FLOWS_AT_FIRST, SEED
from nat_rewriter.model.slices import Address

EVERYTHING = FlowFilter()


def dump_bytes(wanted: FlowFilter = EVERYTHING, sieve: Any = None) -> bytearray:
    """Return the records of a dump as bytes, those alone that a sieve keeps if there is one."""
    with started_dump(wanted, sieve) as started:
        return netlink.collect_bytes(started, FLOW_BYTES, FLOWS_AT_FIRST)


@contextmanager
def started_dump(wanted: FlowFilter, sieve: Any = None) -> Iterator[netlink.Dump]:
    """Start a dump with the kernel's filter, or without where the kernel refuses it.

    A ``sieve`` (struct nr_sieve) sees every entry that the filter lets through, and decides which of them come back.
    """
    attributes = filter_attributes(wanted)
    # A C structure keeps no Python object alive: the filter has to be held here for as long as it is used.
    kept = ffi.new("struct nr_filter *", filter_fields(wanted))
    context = ffi.new("struct nr_context *", {"seed": SEED, "filter": kept, "sieve": sieve or ffi.NULL})
    with netlink.open_socket(lib.NETLINK_NETFILTER, DUMP) as source:
        try:
            started = _start_dump(source, context, wanted, attributes)
        except NetlinkError:
            if not attributes:
                raise
            started = _start_dump(source, context, wanted, [])
        try:
            yield started
        finally:
            started.close()


def _start_dump(source: socket.socket, context: Any, wanted: FlowFilter, attributes: list[bytes]) -> netlink.Dump:
    request = conntrack_message(lib.IPCTNL_MSG_CT_GET, lib.NLM_F_DUMP, wanted.wanted_family, *attributes)
    with ctnetlink_needed(unknown_request=not attributes):
        # To count a flow takes as long as to decode it: with a sieve, two threads share the work.
        return netlink.Dump(source, request, netlink.FLOWS, context, DUMP, pumped=bool(context.sieve))


@contextmanager
def ctnetlink_needed(*, unknown_request: bool = True) -> Iterator[None]:
    """Turn what nfnetlink answers to an unknown subsystem into UnsupportedFeature."""
    try:
        yield
    except NetlinkError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP) or (
            unknown_request and error.errno == errno.EINVAL
        ):
            raise UnsupportedFeature("ctnetlink", "the module nf_conntrack_netlink", error.detail) from None
        raise


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
