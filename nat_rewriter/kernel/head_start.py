"""A look at sockets and the whole conntrack table that begins before the rest of the program is imported.

The kernel takes longer than all else to list a large table, and waits for nobody: what it writes is received by a
thread of the C core, and decoded when it is known what to look for. Nothing here needs more than the core itself.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from typing import Any

from nat_rewriter.errors import NatctlError
from nat_rewriter.kernel import netlink
from nat_rewriter.kernel._core._native import ffi, lib
from nat_rewriter.kernel.socket_dumps import dump_sockets

FLOW_BYTES: int = ffi.sizeof("struct nr_flow")
FLOWS_AT_FIRST = 4096
# Keys are compared within one process only: a dump and the events that go with it share this seed.
SEED = struct.unpack("=2Q", os.urandom(16))
DUMP = "dump conntrack table"
_FAMILY_HEADER = bytes(4)  # struct nfgenmsg: every family


class HeadStart:
    """Lists sockets, then dumps the table, in the network namespace of the thread that makes it.

    What cannot be begun is left to whoever looks in the ordinary way, and is told why.
    """

    def __init__(self) -> None:
        self._sockets: bytearray | None = None
        self._source: socket.socket | None = None
        self._dump: netlink.Dump | None = None
        self._context = ffi.new("struct nr_context *", {"seed": SEED})
        self._thread = threading.Thread(target=self._begin, name="head-start", daemon=True)
        self._thread.start()

    def _begin(self) -> None:
        request = netlink.message(
            lib.NFNL_SUBSYS_CTNETLINK << 8 | lib.IPCTNL_MSG_CT_GET, lib.NLM_F_DUMP, _FAMILY_HEADER
        )
        try:
            # Sockets first: the entry of a socket that is listed was made by the time the table is dumped.
            self._sockets = dump_sockets()
            self._source = netlink.open_socket(lib.NETLINK_NETFILTER, DUMP)
            self._dump = netlink.Dump(self._source, request, netlink.FLOWS, self._context, DUMP, pumped=True)
        except NatctlError:
            return

    def take(self, sieve: Any) -> tuple[bytearray, bytearray] | None:
        """Return the records of all sockets, and of the flows that a sieve (struct nr_sieve) keeps.

        None where that could not be begun. To be taken once. Raises NetlinkError (EINTR) when the table changed so that
        entries may be missing.
        """
        self._thread.join()
        if self._sockets is None or self._dump is None:
            return None
        self._context.sieve = sieve
        try:
            return self._sockets, netlink.collect_bytes(self._dump, FLOW_BYTES, FLOWS_AT_FIRST)
        finally:
            self._dump.close()
            self._dump = None
