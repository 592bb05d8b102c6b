"""What one look asks of the kernel, in threads: it is under way while the rest of the program is still being loaded.

Nothing here needs numpy. The threads are in the network namespace that the caller is in.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from nat_rewriter.errors import NetlinkError
from nat_rewriter.kernel import netlink
from nat_rewriter.kernel.conntrack_dumps import EVERYTHING, dump_bytes
from nat_rewriter.kernel.conntrack_requests import FlowFilter, TupleFilter
from nat_rewriter.kernel.head_start import HeadStart
from nat_rewriter.kernel.sieve import Sieve
from nat_rewriter.kernel.socket_dumps import dump_sockets
from nat_rewriter.model.findings import Kind
from nat_rewriter.model.needs import Needs, needs_of
from nat_rewriter.model.policy import Controller, Policy
from nat_rewriter.model.slices import Address, Slice

# Kinds that are about flows from soft-unicast addresses alone, but for who is in their way.
_OF_LOCAL_FLOWS = frozenset({Kind.PORT_LEAKED, Kind.PORT_REMAPPED})
# The kernel compares one address a dump, and one dump at a time: a filtered one takes a fifth of a whole one.
_MOST_ADDRESSES = 4


@dataclass(frozen=True, slots=True)
class Tables:
    """Records of sockets and flows as bytes, and what counted the flows; empty where nobody needs them."""

    sockets: bytes | bytearray = field(default=b"", repr=False)
    flows: bytes | bytearray = field(default=b"", repr=False)
    sieve: Sieve | None = None


class Gathering:
    """Begins to read what the detection of some kinds needs; each method waits for its part, and raises its errors.

    ``begun``: a look at everything that has begun already.
    """

    def __init__(self, policy: Policy, kinds: Collection[Kind], begun: HeadStart | None = None) -> None:
        self.needs = needs_of(kinds)
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="gather")
        self._tables = self._threads.submit(read_tables, policy, kinds, begun)
        self._drift: Future[list[str]] | None = None
        if self.needs & Needs.DRIFT:
            self._drift = self._threads.submit(read_differences, policy)
        self._threads.shutdown(wait=False)

    def tables(self) -> Tables:
        """Return sockets and flows."""
        return self._tables.result()

    def differences(self) -> tuple[str, ...]:
        """Return how the live table differs from the configuration."""
        return tuple(self._drift.result()) if self._drift else ()


def read_tables(policy: Policy, kinds: Collection[Kind], begun: HeadStart | None = None) -> Tables:
    """Return sockets and flows as far as the detection of some kinds looks at them."""
    found = _finished(begun, policy.slices) if begun else None
    if found:
        return found
    needs = needs_of(kinds)
    # Sockets first: the entry of a socket that is listed was made by the time the table is dumped.
    sockets = dump_sockets() if needs & Needs.SOCKETS else b""
    if not needs & Needs.FLOWS:
        return Tables(sockets)
    filters = _filters(policy, kinds)
    return netlink.once_more(lambda: _sifted(sockets, Sieve(policy.slices), filters))


def _filters(policy: Policy, kinds: Collection[Kind]) -> list[FlowFilter]:
    """Return which entries to ask the kernel for: together they have all that the kinds are about."""
    addresses = {each.address for each in policy.slices}
    if not set(kinds) <= _OF_LOCAL_FLOWS:
        return [EVERYTHING]
    bit = policy.controller.local_mark
    if bit and addresses <= marked_addresses(policy.controller):
        return [FlowFilter(mark=bit, mark_mask=bit)]
    if len(addresses) <= _MOST_ADDRESSES:
        return [FlowFilter(original=TupleFilter(src=address)) for address in addresses]
    return [EVERYTHING]


def marked_addresses(controller: Controller) -> set[Address]:
    """Return the addresses of which, by the table that is in force, all flows are marked."""
    from nat_rewriter.kernel.address_sets import list_addresses

    return {each for family in (4, 6) for each in list_addresses(controller.table, controller.marked_set(family))}


def _finished(begun: HeadStart, slices: Sequence[Slice]) -> Tables | None:
    """Return what a look found that began before; None where it has to be begun again."""
    sieve = Sieve(slices)
    try:
        found = begun.take(sieve.handle)
    except NetlinkError as error:
        if error.errno != errno.EINTR:
            raise
        return None
    return Tables(*found, sieve) if found else None


def _sifted(sockets: bytes | bytearray, sieve: Sieve, filters: Sequence[FlowFilter]) -> Tables:
    flows = bytearray().join(dump_bytes(wanted, sieve.handle) for wanted in filters)
    return Tables(sockets, flows, sieve)


def read_differences(policy: Policy) -> list[str]:
    """Return how the live table differs from the configuration, without the frame that a diff has around it."""
    return list(_differences(policy))


def _differences(policy: Policy) -> Iterator[str]:
    from nat_rewriter.controller.intent import read_drift

    for line in read_drift(policy):
        if not line.startswith(("---", "+++", "@@", " ")):
            yield f"{line[:1]} {line[1:].strip()}"
