"""Where a change that waits to be confirmed is decided: one address for each table and network namespace."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator

from nat_rewriter.errors import KernelError, LockHeld
from nat_rewriter.kernel.lock import peer_credentials

_ANSWER_WITHIN_S = 30.0  # going back to a large table takes its time
_HEAR_WITHIN_S = 1.0
_LONGEST = 4096


@contextlib.contextmanager
def listening(table: str) -> Iterator[socket.socket]:
    """Listen for those who decide; raise LockHeld where another change of the table waits already."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        try:
            door.bind(_address(table))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise KernelError("wait for confirmation", error.errno or 0, os.strerror(error.errno or 0)) from None
            raise LockHeld("wait for confirmation", "another change waits to be confirmed", table) from None
        door.listen()
        yield door


def hear(door: socket.socket) -> tuple[str, Callable[[str], None]] | None:
    """Accept one caller; return its word and how to answer. None for a caller who says nothing, or is not trusted."""
    caller, _ = door.accept()
    caller.settimeout(_HEAR_WITHIN_S)
    with contextlib.suppress(OSError):
        word = caller.recv(_LONGEST).decode(errors="replace") if _trusted(caller) else ""
        if word:
            return word, lambda answer: _answer(caller, answer)
    caller.close()
    return None


def is_waiting(table: str) -> bool:
    """Tell whether a change of the table waits to be confirmed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        return _connected(caller, table)


def call(table: str, word: str) -> str | None:
    """Say a word to who waits for the confirmation of a table; return the answer, None where nobody waits."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(_ANSWER_WITHIN_S)
        if not _connected(caller, table):
            return None
        try:
            caller.sendall(word.encode())
            return caller.recv(_LONGEST).decode(errors="replace") or None
        except TimeoutError:
            raise KernelError("decide about a change", errno.ETIMEDOUT, "it was heard but not answered") from None
        except OSError:
            return None


def _answer(caller: socket.socket, answer: str) -> None:
    with caller, contextlib.suppress(OSError):
        caller.sendall(answer.encode())


def _connected(caller: socket.socket, table: str) -> bool:
    try:
        caller.connect(_address(table))
    except OSError:
        return False
    return _trusted(caller)


def _trusted(connection: socket.socket) -> bool:
    """Tell whether the other end is root or this very user: an abstract address has no permissions of its own."""
    return peer_credentials(connection)[1] in (0, os.geteuid())


def _address(table: str) -> str:
    return f"\0natctl/{table}/confirm"
