"""The process in which libnftables runs, started as a script by :mod:`nat_rewriter.kernel.nft`.

It reads requests and writes answers, each a 4-byte length and JSON, until its standard input ends. It stands alone: it
imports nothing of natctl, so that it starts at once, and a crash in the library takes nothing else along.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

import nftables

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
SCRATCH = "--scratch"  # work in a network namespace that no one else is in, and that ends with the process
END_WITH = "--end-with"  # followed by the process whose end is also the end of this one
PR_SET_PDEATHSIG = 1
UNREASONABLE = 1 << 30  # a buffer size that the kernel cuts down to what is allowed
NO_NAMESPACE = 77  # exit status when that is not allowed here


class Library(nftables.Nftables):  # type: ignore[misc]
    """libnftables, with the one call that older releases of its Python module do not wrap."""

    def set_dry_run(self, wanted: bool) -> None:
        """Let the following commands be checked only: nft_ctx_set_dry_run(3)."""
        context = ctypes.c_void_p(self._Nftables__ctx)
        ctypes.CDLL("libnftables.so.1").nft_ctx_set_dry_run(context, ctypes.c_bool(wanted))


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    while head := requests.read(4):
        request = json.loads(requests.read(struct.unpack("<I", head)[0]))
        answer = json.dumps(run(request)).encode()
        answers.write(struct.pack("<I", len(answer)) + answer)
        answers.flush()


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run one request: its ``text``, with the output options it names.

    Each has a library context of its own: what one has only checked stays in its cache, and would be in the way of
    the same elements when they are loaded.
    """
    library = Library()
    widen_send_buffers()
    library.set_json_output(request.get("json", False))
    library.set_stateless_output(request.get("stateless", False))
    library.set_terse_output(request.get("terse", False))
    library.set_dry_run(request.get("check", False))
    code, output, error = library.cmd(request["text"])
    return {"code": code, "output": output, "error": error}


def leave_network() -> None:
    """Move into a new network namespace; without privilege, inside a new user namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0 and libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        os._exit(NO_NAMESPACE)


def widen_send_buffers() -> None:
    """Give the library's netlink sockets the largest send buffer that any user may have: twice net.core.wmem_max.

    A transaction goes out as one message. The library itself asks for room with SO_SNDBUFFORCE alone, which needs
    CAP_NET_ADMIN of the initial user namespace.
    """
    for descriptor in list(Path("/proc/self/fd").iterdir()):
        if descriptor.is_socket():
            with socket.socket(fileno=os.dup(int(descriptor.name))) as found:
                if found.family == socket.AF_NETLINK:
                    found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREASONABLE)


def end_with(parent: int) -> None:
    """Be killed when the parent ends, but not before the kernel has finished what it is at: prctl(2)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    if END_WITH in sys.argv[1:]:
        end_with(int(sys.argv[sys.argv.index(END_WITH) + 1]))
    if SCRATCH in sys.argv[1:]:
        leave_network()
    serve(sys.stdin.buffer, sys.stdout.buffer)
