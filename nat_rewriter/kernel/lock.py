"""The lock that lets one natctl at a time change a table in a network namespace."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator

from nat_rewriter.errors import LockHeld

PEER_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


@contextlib.contextmanager
def table_lock(table: str) -> Iterator[None]:
    """Hold the lock of a table in this network namespace; raise LockHeld, naming the holder, where another has it.

    An abstract Unix address belongs to one network namespace, needs no file, and goes with the process, however that
    ends: unix(7).
    """
    address = f"\0natctl/{table}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as holder:
        try:
            holder.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise LockHeld("lock table", f"held by {_holder_of(address)}", table) from None
        holder.listen()
        yield


def _holder_of(address: str) -> str:
    """Return who holds the lock, as far as the kernel tells."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
        try:
            asker.settimeout(1)
            asker.connect(address)
            credentials = asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER_CREDENTIALS.size)
        except OSError:
            return "a process that just ended"
    return f"process {PEER_CREDENTIALS.unpack(credentials)[0]}"
