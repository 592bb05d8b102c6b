"""The lock that lets one natctl at a time change a table in a network namespace."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from nat_rewriter.errors import LockHeld

PEER_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
ENDING_WITHIN_S = 30.0  # how long the kernel may be at work on the last transaction of a process that was killed
_LOOK_EVERY_S = 1.0
_AGAIN_AFTER_S = 0.05  # where the queue of those who wait for the holder is full


@contextlib.contextmanager
def table_lock(table: str, wait_s: float = 0.0) -> Iterator[socket.socket]:
    """Hold the lock of a table in this network namespace; raise LockHeld, naming the holder, where another keeps it.

    An abstract Unix address belongs to one network namespace, needs no file, and goes with the processes that have the
    socket, however they end: unix(7). The socket is yielded so that a child can be given it, and so outlast its parent.
    """
    address = f"\0natctl/{table}"
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        while (holder := _bound(address)) is None:
            pid = _holder_of(address)
            left = began + (wait_s if _is_running(pid) else max(wait_s, ENDING_WITHIN_S)) - time.monotonic()
            if left <= 0:
                raise LockHeld("lock table", f"held by process {pid}", table)
            _wait_for_end(address, min(left, _LOOK_EVERY_S))
        stack.enter_context(holder)
        holder.listen()
        yield holder


def peer_credentials(connection: socket.socket) -> tuple[int, int]:
    """Return process id and user id of the other end of a Unix socket."""
    pid, uid, _ = PEER_CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER_CREDENTIALS.size)
    )
    return pid, uid


def _bound(address: str) -> socket.socket | None:
    """Return a socket of that address, None where another process has it."""
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        holder.bind(address)
    except OSError as error:
        holder.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return holder


def _wait_for_end(address: str, at_most_s: float) -> None:
    """Return when the holder of the address is gone, or a little later, or when the time is over."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
        asker.settimeout(at_most_s)
        try:
            asker.connect(address)
            asker.recv(1)  # nobody ever accepts or answers: this ends with the listening socket
        except OSError:
            time.sleep(min(_AGAIN_AFTER_S, at_most_s))


def _holder_of(address: str) -> int:
    """Return the process that took the lock; 0 for one that just ended, or that this process cannot see."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
        try:
            asker.settimeout(1)
            asker.connect(address)
            return peer_credentials(asker)[0]
        except OSError:
            return 0


def _is_running(pid: int) -> bool:
    """Tell whether a process has not ended; one that waits to be buried has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in "ZX"
