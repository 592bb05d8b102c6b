"""The conntrack mark of flows that are there: one bit of it changed, everything else left as it is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from nat_rewriter.kernel import netlink
from nat_rewriter.kernel._core._native import lib
from nat_rewriter.kernel.conntrack import dump
from nat_rewriter.kernel.conntrack_records import Records
from nat_rewriter.kernel.conntrack_requests import (
    FlowFilter,
    TupleFilter,
    conntrack_message,
    tuple_attribute,
    u32_attribute,
    zone_attributes,
)
from nat_rewriter.model.flows import flow_from_record
from nat_rewriter.model.slices import Address

_AT_ONCE = 16  # their answers have to fit into the smallest receive buffer
_CHANGE = "change conntrack mark"


def mark_flows_from(address: Address, bit: int) -> None:
    """Set a bit in the mark of every flow from an address. Raises NetlinkError, PermissionNeeded."""
    _change(dump(FlowFilter(original=TupleFilter(src=address), mark=0, mark_mask=bit)), bit, bit)


def unmark_flows(bit: int) -> None:
    """Clear a bit in the mark of every flow that has it. Raises NetlinkError, PermissionNeeded."""
    _change(dump(FlowFilter(mark=bit, mark_mask=bit)), 0, bit)


def _change(flows: Records, mark: int, mask: int) -> None:
    """Change the bits of a mask. What has ended meanwhile is left out."""
    requests = _requests(flows, mark, mask)
    with netlink.open_socket(lib.NETLINK_NETFILTER, _CHANGE) as asked:
        while asking := list(itertools.islice(requests, _AT_ONCE)):
            netlink.ask_each(asked, asking, _CHANGE)


def _requests(flows: Records, mark: int, mask: int) -> Iterator[bytes]:
    marks = u32_attribute(lib.CTA_MARK, mark), u32_attribute(lib.CTA_MARK_MASK, mask)
    for record in flows:
        flow = flow_from_record(record)
        which = tuple_attribute(lib.CTA_TUPLE_ORIG, flow.original), *zone_attributes(flow.zone)
        # Without NLM_F_CREATE: an entry that is there is changed, and none is made.
        yield conntrack_message(lib.IPCTNL_MSG_CT_NEW, lib.NLM_F_ACK, flow.original.src.version, *which, *marks)
