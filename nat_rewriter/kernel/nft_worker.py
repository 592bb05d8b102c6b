"""The process in which libnftables runs, started as a script by :mod:`nat_rewriter.kernel.nft`.

It reads requests and writes answers until its standard input ends: a header, and the bytes whose lengths it gives. A
request is a command of nft with options, or questions to the kernel (RAW). The process stands alone: it imports nothing
of natctl, so that it starts at once, and a crash in the library takes nothing else along.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import nftables

REQUEST = struct.Struct("<II")  # options, length of the text
ANSWER = struct.Struct("<iII")  # code, lengths of output and error
JSON, STATELESS, TERSE, CHECK, RAW = 1, 2, 4, 8, 16
NETLINK_NETFILTER, NLMSG_ERROR, NLMSG_DONE = 12, 2, 3
HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
KERNEL_ANSWERS_WITHIN_S = 30
RECEIVE_BYTES = 1 << 17  # more than netlink_dump() ever puts into a datagram
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
    while head := requests.read(REQUEST.size):
        options, length = REQUEST.unpack(head)
        content = requests.read(length)
        code, output, error = answer_of_kernel(content) if options & RAW else run(content, options)
        answers.write(ANSWER.pack(code, len(output), len(error)))
        answers.write(output)
        answers.write(error)
        answers.flush()


def run(text: bytes, options: int) -> tuple[int, bytes, bytes]:
    """Run one command and return its code, output and error.

    Each has a library context of its own: what one has only checked stays in its cache, and would be in the way of
    the same elements when they are loaded.
    """
    library = Library()
    widen_send_buffers()
    library.set_json_output(bool(options & JSON))
    library.set_stateless_output(bool(options & STATELESS))
    library.set_terse_output(bool(options & TERSE))
    library.set_dry_run(bool(options & CHECK))
    code, output, error = library.cmd(text.decode())
    return code, output.encode(), error.encode()


def answer_of_kernel(questions: bytes) -> tuple[int, bytes, bytes]:
    """Return what the kernel answers, or the number of the error that kept it from answering."""
    try:
        return 0, ask_kernel(questions), b""
    except OSError as error:
        return error.errno or errno.ETIMEDOUT, b"", b""


def ask_kernel(questions: bytes) -> bytes:
    """Send netlink messages to nf_tables one by one and return all that they are answered, up to the end of each.

    Each has to ask for an end: NLM_F_ACK or NLM_F_DUMP.
    """
    parts: list[bytes] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as asked:
        asked.settimeout(KERNEL_ANSWERS_WITHIN_S)
        for question in messages(questions):
            asked.send(question)
            ended = False
            while not ended:
                parts.append(asked.recv(RECEIVE_BYTES))
                ended = any(HEADER.unpack_from(one)[1] in (NLMSG_ERROR, NLMSG_DONE) for one in messages(parts[-1]))
    return b"".join(parts)


def messages(content: bytes) -> Iterator[memoryview]:
    """Yield the netlink messages in some bytes."""
    rest = memoryview(content)
    while rest:
        length = max(HEADER.unpack_from(rest)[0], HEADER.size)
        yield rest[:length]
        rest = rest[(length + 3) & ~3 :]


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
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    if END_WITH in sys.argv[1:]:
        end_with(int(sys.argv[sys.argv.index(END_WITH) + 1]))
    if SCRATCH in sys.argv[1:]:
        leave_network()
    serve(sys.stdin.buffer, sys.stdout.buffer)
    os._exit(0)  # to take the interpreter apart takes longer than a small transaction, and somebody waits for the end
