"""The addresses in a set of natctl's table, asked of the kernel alone: in a moment, and without libnftables."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from ipaddress import ip_address

from nat_rewriter.errors import NetlinkError
from nat_rewriter.kernel import netlink
from nat_rewriter.kernel._core._native import lib
from nat_rewriter.kernel.nft_dumps import attributes, elements_question
from nat_rewriter.model.slices import Address

# linux/netfilter/nf_tables.h: NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ELEM_KEY and NFTA_DATA_VALUE.
_ELEMENTS, _KEY, _VALUE = 3, 1, 1
_FAMILY_HEADER = 4


def list_addresses(table: str, name: str) -> frozenset[Address]:
    """Return the addresses in a set; none where there is no such set. Raises NetlinkError, PermissionNeeded."""
    question = elements_question(table, name.encode() + b"\0")
    try:
        answers = netlink.ask(lib.NETLINK_NETFILTER, question, "list addresses of a set")
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return frozenset()
        raise
    return frozenset(address for answer in answers for address in _addresses(answer))


def _addresses(answer: bytes) -> Iterator[Address]:
    content = answer[netlink.MESSAGE_HEADER + _FAMILY_HEADER :]
    for _, element in attributes(dict(attributes(content)).get(_ELEMENTS, b"")):
        yield ip_address(dict(attributes(dict(attributes(element))[_KEY]))[_VALUE])
