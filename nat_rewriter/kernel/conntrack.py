"""The kernel's conntrack table through ctnetlink: dumped, followed, and changed one entry at a time.

Records are numpy arrays of :data:`FLOW_DTYPE`; the C core receives and decodes them outside the interpreter's lock.
Every function works in the network namespace of the calling thread. Errors: PermissionNeeded without CAP_NET_ADMIN,
UnsupportedFeature where the kernel has no ctnetlink, NetlinkError with the kernel's errno, DecodeError.
"""

from __future__ import annotations

import errno
import itertools
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from nat_rewriter.errors import NetlinkError
from nat_rewriter.kernel import netlink
from nat_rewriter.kernel._core._native import lib
from nat_rewriter.kernel.conntrack_dumps import EVERYTHING, ctnetlink_needed, started_dump
from nat_rewriter.kernel.conntrack_events import EventBatch, EventStream, Groups
from nat_rewriter.kernel.conntrack_records import FLOW_DTYPE, Decoded, Records, decode
from nat_rewriter.kernel.conntrack_requests import (
    FAMILY_HEADER,
    FlowFilter,
    TupleFilter,
    conntrack_message,
    source_nat_attribute,
    tuple_attribute,
    u32_attribute,
    zone_attributes,
)
from nat_rewriter.kernel.head_start import SEED
from nat_rewriter.model.flows import Flow, Status, flow_from_record
from nat_rewriter.model.slices import Address
from nat_rewriter.model.tuples import FlowTuple, Question

__all__ = [
    "FLOW_DTYPE",
    "Decoded",
    "EventBatch",
    "EventStream",
    "FlowFilter",
    "Groups",
    "Records",
    "TableSize",
    "TupleFilter",
    "decode",
    "delete_flow",
    "dump",
    "dump_batches",
    "find_flows",
    "get_flow",
    "get_table_size",
    "insert_flow",
    "list_cpu_statistics",
]

BATCH_RECORDS = 16384
_QUESTIONS = 16  # at a time: their answers have to fit into the smallest receive buffer
_FIND = "find conntrack entries"


class TableSize(NamedTuple):
    """How full the table of this network namespace is."""

    entries: int
    max_entries: int


def dump(wanted: FlowFilter = EVERYTHING) -> Records:
    """Return all entries that the filter lets through, IPv4 and IPv6, in no order.

    The kernel filters as far as it can; what it cannot, or refuses to, is filtered here with the same result. While the
    table changes, an entry may come twice: ctnetlink_dump_table() starts a hash chain again when its place is gone.
    """
    expected = get_table_size().entries + 1024 if wanted == EVERYTHING else 4096

    def read() -> Records:
        with started_dump(wanted) as started:
            return netlink.collect(started, FLOW_DTYPE, expected)

    return netlink.once_more(read)


def dump_batches(wanted: FlowFilter = EVERYTHING, size: int = BATCH_RECORDS) -> Iterator[Records]:
    """Yield the same entries as :func:`dump`, in arrays of up to ``size`` records, each its own memory.

    Between two arrays the caller may read events. Raises NetlinkError (EINTR) when the table changed so that entries
    may be missing.
    """
    with started_dump(wanted) as started:
        yield from netlink.batches(started, FLOW_DTYPE, size)


def _ask(operation: int, flags: int, family: int | None, *attributes: bytes, doing: str) -> list[bytes]:
    return netlink.ask(lib.NETLINK_NETFILTER, conntrack_message(operation, flags, family, *attributes), doing)


def get_flow(wanted: FlowTuple, zone: int = 0) -> Flow | None:
    """Return the entry that has this tuple in either direction, or None."""
    parts = [tuple_attribute(lib.CTA_TUPLE_ORIG, wanted), *zone_attributes(zone)]
    try:
        answer = _ask(lib.IPCTNL_MSG_CT_GET, lib.NLM_F_ACK, wanted.src.version, *parts, doing="get conntrack entry")
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return flow_from_record(decode(answer[0]).records[0])


def find_flows(wanted: Iterable[Question]) -> Records:
    """Return the entries that have one of these tuples in either direction, those that are there, in no order.

    The answer to many questions takes some ten microseconds each.
    """
    answers: list[bytes] = []
    with netlink.open_socket(lib.NETLINK_NETFILTER, _FIND) as asked:
        questions = map(_question, wanted)
        while asking := list(itertools.islice(questions, _QUESTIONS)):
            answers += netlink.ask_each(asked, asking, _FIND)
    entries = b"".join(answer + bytes(-len(answer) % 4) for answer in answers)
    return decode(entries, seed=SEED).records


def _question(wanted: Question) -> bytes:
    tuple_, zone, is_reply = wanted
    parts = [tuple_attribute(lib.CTA_TUPLE_REPLY, tuple_, is_reply=is_reply), *zone_attributes(zone)]
    return conntrack_message(lib.IPCTNL_MSG_CT_GET, 0, tuple_.src.version, *parts)


def delete_flow(original: FlowTuple, zone: int = 0, flow_id: int | None = None) -> bool:
    """Delete the entry with this original tuple (and, if given, this id); tell whether it was there."""
    parts = [tuple_attribute(lib.CTA_TUPLE_ORIG, original), *zone_attributes(zone)]
    if flow_id is not None:
        parts.append(u32_attribute(lib.CTA_ID, flow_id))
    try:
        _ask(lib.IPCTNL_MSG_CT_DELETE, lib.NLM_F_ACK, original.src.version, *parts, doing="delete conntrack entry")
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def insert_flow(
    original: FlowTuple,
    timeout_s: int,
    *,
    zone: int = 0,
    mark: int = 0,
    status: Status = Status.CONFIRMED,
    source_nat: tuple[Address, int] | None = None,
) -> None:
    """Create an entry for a tuple, not translated unless ``source_nat`` (address, port) says so.

    Raises NetlinkError with EEXIST when an entry has the tuple in either direction.
    """
    parts = [
        tuple_attribute(lib.CTA_TUPLE_ORIG, original),
        tuple_attribute(lib.CTA_TUPLE_REPLY, original.reversed(), is_reply=True),
        u32_attribute(lib.CTA_TIMEOUT, timeout_s),
        u32_attribute(lib.CTA_STATUS, status),
        *zone_attributes(zone),
    ]
    if mark:
        parts.append(u32_attribute(lib.CTA_MARK, mark))
    if source_nat is not None:
        parts.append(source_nat_attribute(*source_nat))
    flags = lib.NLM_F_ACK | lib.NLM_F_CREATE | lib.NLM_F_EXCL
    _ask(lib.IPCTNL_MSG_CT_NEW, flags, original.src.version, *parts, doing="insert conntrack entry")


def get_table_size() -> TableSize:
    """Return how many entries the table has and may have."""
    with ctnetlink_needed():
        answer = _ask(lib.IPCTNL_MSG_CT_GET_STATS, lib.NLM_F_ACK, None, doing="get size of conntrack table")
    values = _numbers(answer[0])
    return TableSize(values[lib.CTA_STATS_GLOBAL_ENTRIES], values.get(lib.CTA_STATS_GLOBAL_MAX_ENTRIES, 0))


# Names as `conntrack -S` prints them.
_CPU_STATISTICS = {
    name: getattr(lib, f"CTA_STATS_{name.upper()}")
    for name in (
        "found", "invalid", "insert", "insert_failed", "drop", "early_drop", "error", "search_restart",
        "clash_resolve", "chain_toolong",
    )
}  # fmt: skip


def list_cpu_statistics() -> list[dict[str, int]]:
    """Return the counters of each CPU: ``cpu`` and the names that `conntrack -S` prints; 0 where it does not count."""
    with ctnetlink_needed():
        answer = _ask(lib.IPCTNL_MSG_CT_GET_STATS_CPU, lib.NLM_F_DUMP, None, doing="list conntrack statistics")
    rows = []
    for message in answer:
        # struct nfgenmsg has the number of the CPU where a resource id usually is.
        cpu = struct.unpack_from("!BBH", message, netlink.MESSAGE_HEADER)[2]
        values = _numbers(message)
        rows.append({"cpu": cpu} | {name: values.get(kind, 0) for name, kind in _CPU_STATISTICS.items()})
    return rows


def _numbers(message: bytes) -> dict[int, int]:
    """Return the 32-bit attributes of a ctnetlink message."""
    attributes = netlink.read_attributes(message[netlink.MESSAGE_HEADER + FAMILY_HEADER :])
    return {kind: int.from_bytes(value) for kind, value in attributes.items() if len(value) == 4}
