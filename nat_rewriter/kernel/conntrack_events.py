"""Conntrack events: subscribed to, read in batches, and counted when the kernel could not deliver them."""

from __future__ import annotations

import enum
import errno
import socket
import struct
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from nat_rewriter.errors import NatctlError
from nat_rewriter.kernel import netlink
from nat_rewriter.kernel._core._native import ffi, lib
from nat_rewriter.kernel.conntrack_records import FLOW_DTYPE, Records
from nat_rewriter.kernel.head_start import SEED

# An event datagram holds one entry: some 300 bytes, a few hundred more with labels and the like.
_DATAGRAMS, _DATAGRAM_BYTES = 64, 4096
_BATCH_RECORDS = 16384
_OPAQUE = np.dtype((np.void, FLOW_DTYPE.itemsize))
_LISTEN = "listen to conntrack events"


class Groups(enum.IntFlag):
    """Kinds of events to subscribe to."""

    NEW = 1
    UPDATE = 2
    DESTROY = 4
    ALL = 7


_GROUP_NUMBERS = {
    Groups.NEW: lib.NFNLGRP_CONNTRACK_NEW,
    Groups.UPDATE: lib.NFNLGRP_CONNTRACK_UPDATE,
    Groups.DESTROY: lib.NFNLGRP_CONNTRACK_DESTROY,
}


class EventBatch(NamedTuple):
    """Events in the order in which they happened, and whether the kernel dropped others."""

    records: Records
    overruns: int  # 0: none was lost before the end of this batch; else how many the kernel dropped, as far as known
    drained: bool  # nothing was left to read


class EventStream:
    """A subscription to conntrack events, in the network namespace of the thread that opens it.

    The kernel keeps events for the reader in ``buffer_bytes`` (what was granted; some 1280 bytes an event) and drops
    what does not fit. With ``retry_destroy`` it keeps trying to deliver DESTROY events that did not fit, while the
    entry lingers (NETLINK_BROADCAST_ERROR). Raises PermissionNeeded, NetlinkError.

    Entries that came while nobody on the machine listened have no events, not even DESTROY, unless the sysctl
    net.netfilter.nf_conntrack_events is 1 (by default it is 2): only a dump tells that they are gone.
    """

    def __init__(
        self, groups: Groups = Groups.ALL, buffer_bytes: int = 32 << 20, *, retry_destroy: bool = False
    ) -> None:
        self._source = netlink.open_socket(lib.NETLINK_NETFILTER, _LISTEN)
        self._records = np.empty(_BATCH_RECORDS, FLOW_DTYPE)
        self._wrong: NatctlError | None = None
        self._dropped = 0
        try:
            self.buffer_bytes = _grant_buffer(self._source, buffer_bytes)
            self._source.setsockopt(lib.SOL_NETLINK, lib.NETLINK_BROADCAST_ERROR, int(retry_destroy))
            self._source.bind((0, sum(1 << number - 1 for group, number in _GROUP_NUMBERS.items() if group in groups)))
        except OSError as error:
            self._source.close()
            raise netlink.refusal(_LISTEN, error.errno or errno.EIO) from None
        context = ffi.new("struct nr_context *", {"seed": SEED, "events": 1})
        self._receiver = netlink.Receiver(self._source, netlink.FLOWS, context, _DATAGRAMS, _DATAGRAM_BYTES)
        self._room = self._receiver.room(self._records.view("u1"))

    def __enter__(self) -> EventStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the subscription."""
        self._source.close()

    def fileno(self) -> int:
        """Return the descriptor, for select and poll; events may be left in the stream although it is not readable."""
        return self._source.fileno()

    def read(self, timeout_s: float = 0) -> EventBatch:
        """Return what is there, up to 16384 events; wait for the first one up to ``timeout_s``.

        A signal ends the wait with an empty batch. Lost events are counted, never an error. Raises DecodeError for an
        event that cannot be read, after the events before it were returned.
        """
        if self._wrong is not None:
            wrong, self._wrong = self._wrong, None
            raise wrong
        progress, problem = self._receiver.read(
            self._room, 0, until_done=False, timeout_ms=max(0, round(timeout_s * 1000))
        )
        self._wrong = self._problem_of(progress, problem)
        if self._wrong is not None and not progress.records:
            return self.read()
        # A copy, as the array is written over by the next read; of opaque bytes, as numpy copies structures by field.
        records = self._records.view(_OPAQUE)[: progress.records].copy().view(FLOW_DTYPE)
        return EventBatch(records, self._count_lost(progress), bool(progress.flags & lib.NR_DRAINED))

    def _problem_of(self, progress: Any, problem: int) -> NatctlError | None:
        if problem:
            return netlink.decode_error(_LISTEN, problem, progress.offset)
        return netlink.refusal(_LISTEN, progress.error) if progress.error else None

    def _count_lost(self, progress: Any) -> int:
        """Return how many events were dropped since the last call.

        ENOBUFS is told once, and not again until the reader has emptied the buffer (NETLINK_S_CONGESTED): what is
        dropped in between shows in the socket's own counter alone.
        """
        dropped = _dropped_by(self._source)
        since, self._dropped = (dropped - self._dropped) & 0xFFFFFFFF, dropped
        told = int(progress.overruns) + bool(progress.flags & lib.NR_OVERRUN)
        return max(since, told)


def _grant_buffer(source: socket.socket, wanted: int) -> int:
    """Ask for a receive buffer; return what was granted. Beyond net.core.rmem_max it needs CAP_NET_ADMIN."""
    # The kernel doubles what it is asked for, to allow for its own bookkeeping.
    try:
        source.setsockopt(socket.SOL_SOCKET, lib.SO_RCVBUFFORCE, wanted // 2)
    except PermissionError:
        source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted // 2)
    return source.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


def _dropped_by(source: socket.socket) -> int:
    """Return how many messages the kernel has ever dropped for a socket, modulo 2**32."""
    memory = source.getsockopt(socket.SOL_SOCKET, lib.SO_MEMINFO, 4 * lib.SK_MEMINFO_VARS)
    return int(struct.unpack_from("=I", memory, 4 * lib.SK_MEMINFO_DROPS)[0])
