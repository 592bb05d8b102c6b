"""What both netlink edges share: messages as bytes, small questions with their answers, and dumps read by the C core.

Small requests are built here with ``struct``: they are rare. What comes in bulk is received and decoded in C, outside
the interpreter's lock.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from nat_rewriter.errors import DecodeError, KernelError, NetlinkError, PermissionNeeded
from nat_rewriter.kernel._core._native import ffi, lib

if TYPE_CHECKING:
    import numpy as np

_T = TypeVar("_T")
ANSWER_TIMEOUT_S = 10
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port id
MESSAGE_HEADER = _HEADER.size
_FLAGS_AT, _SEQUENCE_AT = 6, 8  # struct nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
# Larger than any datagram the kernel builds for a dump: netlink_dump() stops at 32 KiB.
DUMP_BYTES = 65536
DUMP_DATAGRAMS = 2
# 32 MiB of a dump, a hundred thousand flows, may wait for whoever is to decode them.
PUMP_DATAGRAMS = 1024


def attribute(kind: int, payload: bytes) -> bytes:
    """Return one attribute, padded to four bytes."""
    length = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + bytes(-length % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that holds attributes."""
    return attribute(kind | lib.NLA_F_NESTED, b"".join(attributes))


def message(kind: int, flags: int, payload: bytes) -> bytes:
    """Return a request of one message."""
    return _HEADER.pack(_HEADER.size + len(payload), kind, flags | lib.NLM_F_REQUEST, 1, 0) + payload


def read_attributes(payload: bytes) -> dict[int, bytes]:
    """Return the attributes of one level by type; the last of a type counts. Raises DecodeError."""
    found: dict[int, bytes] = {}
    while payload:
        length, kind = _ATTRIBUTE.unpack_from(payload) if len(payload) >= _ATTRIBUTE.size else (0, 0)
        if not _ATTRIBUTE.size <= length <= len(payload):
            raise DecodeError("read netlink answer", "length of an attribute does not fit its message", length)
        found[kind & lib.NLA_TYPE_MASK] = payload[_ATTRIBUTE.size : length]
        payload = payload[(length + 3) & ~3 :]
    return found


def refusal(operation: str, code: int, detail: str = "") -> KernelError:
    """Return the error that a refused request is: PermissionNeeded for EPERM, else NetlinkError with its errno."""
    if code in (errno.EPERM, errno.EACCES):
        return PermissionNeeded(operation, "CAP_NET_ADMIN")
    return NetlinkError(operation, code, os.strerror(code).lower() + (f" ({detail})" if detail else ""))


def open_socket(protocol: int, operation: str) -> socket.socket:
    """Open a netlink socket in the network namespace of the calling thread. Raises NetlinkError, PermissionNeeded."""
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    except OSError as error:
        raise refusal(operation, error.errno or errno.EIO) from None
    opened.settimeout(ANSWER_TIMEOUT_S)
    opened.setsockopt(lib.SOL_NETLINK, lib.NETLINK_EXT_ACK, 1)
    return opened


def ask(protocol: int, request: bytes, operation: str) -> list[bytes]:
    """Send one request and return the messages of its answer, headers included.

    The answer has to end with an acknowledgement or the end of a dump: NLM_F_ACK or NLM_F_DUMP. Raises NetlinkError,
    PermissionNeeded, DecodeError.
    """
    messages: list[bytes] = []
    with open_socket(protocol, operation) as asked:
        try:
            asked.send(request)
            while True:
                for answer in split_messages(asked.recv(DUMP_BYTES)):
                    if _is_last(answer):
                        _raise_refusal(operation, answer)
                        return messages
                    messages.append(answer)
        except TimeoutError:
            raise refusal(operation, errno.ETIMEDOUT) from None
        except OSError as error:
            raise refusal(operation, error.errno or errno.EIO) from None


def ask_each(asked: socket.socket, requests: Sequence[bytes], operation: str) -> list[bytes]:
    """Send requests that have one answer each, and return the answers of those that are granted.

    What is asked for and not there (ENOENT) is left out. Raises NetlinkError, PermissionNeeded, DecodeError.
    """
    granted: list[bytes] = []
    try:
        asked.send(b"".join(requests))
        left = len(requests)
        while left:
            for answer in split_messages(asked.recv(DUMP_BYTES)):
                left -= 1
                if not _is_last(answer):
                    granted.append(answer)
                elif _code_of(answer) != errno.ENOENT:
                    _raise_refusal(operation, answer)
    except TimeoutError:
        raise refusal(operation, errno.ETIMEDOUT) from None
    except OSError as error:
        raise refusal(operation, error.errno or errno.EIO) from None
    return granted


def exchange(
    asked: socket.socket, messages: Sequence[bytearray], operation: str, answers: dict[int, bytes] | None = None
) -> dict[int, int]:
    """Send messages that the kernel answers only where it refuses or is asked for something; return errnos by position.

    The last asks for an acknowledgement: the kernel works through all before send(2) returns. ``answers`` is filled
    with what was asked for, by position. There may be as many as the receive buffer has room for refusals, some 1300
    bytes each. Raises NetlinkError, PermissionNeeded, DecodeError.
    """
    for at, message in enumerate(messages):
        struct.pack_into("=I", message, _SEQUENCE_AT, at)
    last = len(messages) - 1
    (flags,) = struct.unpack_from("=H", messages[last], _FLAGS_AT)
    struct.pack_into("=H", messages[last], _FLAGS_AT, flags | lib.NLM_F_ACK)
    codes: dict[int, int] = {}
    try:
        asked.send(b"".join(messages))
        while last not in codes:
            _sort_answers(asked.recv(DUMP_BYTES), codes, {} if answers is None else answers)
    except TimeoutError:
        raise refusal(operation, errno.ETIMEDOUT) from None
    except OSError as error:
        raise refusal(operation, error.errno or errno.EIO) from None
    return codes


def _sort_answers(datagram: bytes, codes: dict[int, int], answers: dict[int, bytes]) -> None:
    """File the messages of a datagram by the request that they answer: errno, 0 where acknowledged, or an entry."""
    for answer in split_messages(datagram):
        _, kind, _, sequence, _ = _HEADER.unpack_from(answer)
        if kind == lib.NLMSG_ERROR:
            codes[sequence] = _code_of(answer)
        else:
            answers[sequence] = answer


def split_messages(datagram: bytes) -> Iterator[bytes]:
    """Yield the messages of a datagram, headers included. Raises DecodeError."""
    while datagram:
        length = _HEADER.unpack_from(datagram)[0] if len(datagram) >= _HEADER.size else 0
        if not _HEADER.size <= length <= len(datagram):
            raise DecodeError("read netlink answer", "length of a message does not fit its datagram", length)
        yield datagram[:length]
        datagram = datagram[(length + 3) & ~3 :]


def _is_last(answer: bytes) -> bool:
    return _HEADER.unpack_from(answer)[1] in (lib.NLMSG_ERROR, lib.NLMSG_DONE)


def _code_of(answer: bytes) -> int:
    return int(-struct.unpack_from("=i", answer, MESSAGE_HEADER)[0]) if len(answer) >= MESSAGE_HEADER + 4 else 0


def _raise_refusal(operation: str, answer: bytes) -> None:
    code = _code_of(answer)
    if code:
        raise refusal(operation, code, _kernel_words(answer))


def _kernel_words(answer: bytes) -> str:
    """Return what the kernel says in words about a refusal (NETLINK_EXT_ACK), or nothing."""
    _, kind, flags, _, _ = _HEADER.unpack_from(answer)
    if kind != lib.NLMSG_ERROR or not flags & lib.NLM_F_ACK_TLVS:
        return ""
    # struct nlmsgerr: the error, then the request, of which NLM_F_CAPPED leaves the header only.
    request_at = MESSAGE_HEADER + 4
    echoed = MESSAGE_HEADER if flags & lib.NLM_F_CAPPED else _HEADER.unpack_from(answer, request_at)[0]
    words = read_attributes(answer[request_at + ((echoed + 3) & ~3) :]).get(lib.NLMSGERR_ATTR_MSG, b"")
    return words.rstrip(b"\0").decode(errors="replace")


# How the C core reads one kind of record: nr_receive_flows or nr_receive_sockets, and the name of its structure.
Receive = tuple[Callable[..., int], str]
FLOWS: Receive = (lib.nr_receive_flows, "struct nr_flow[]")
SOCKETS: Receive = (lib.nr_receive_sockets, "struct nr_socket[]")


class Receiver:
    """A netlink socket that the C core reads into arrays of records."""

    def __init__(self, source: socket.socket, kind: Receive, context: Any, datagrams: int, datagram_bytes: int) -> None:
        self._source = source  # kept open for as long as its descriptor is read
        self._receive, self._structure = kind
        self._context = context
        handle = lib.nr_receiver_new(source.fileno(), datagrams, datagram_bytes)
        if handle == ffi.NULL:
            raise MemoryError
        self._handle = ffi.gc(handle, lib.nr_receiver_free)

    def read(self, room: Any, start: int, *, until_done: bool, timeout_ms: int) -> tuple[Any, int]:
        """Fill ``room``, an array of structures, from index ``start`` on.

        Return the progress (struct nr_progress) and an enum nr_problem.
        """
        progress = ffi.new("struct nr_progress *", {"records": start})
        problem = self._receive(self._handle, self._context, room, len(room), until_done, timeout_ms, progress)
        return progress, problem

    def close(self) -> None:
        """Give up what the C core holds: before the socket is closed."""
        ffi.release(self._handle)

    def room(self, buffer: Any) -> Any:
        """Return writable memory as an array of structures, to be released after use: a context manager."""
        return ffi.from_buffer(self._structure, buffer, require_writable=True)


class Pump(Receiver):
    """The same for one long dump of flows: a thread of the C core receives while the caller decodes."""

    def __init__(self, source: socket.socket, context: Any) -> None:
        self._source, self._context, self._structure = source, context, FLOWS[1]
        handle = lib.nr_pump_new(source.fileno(), ANSWER_TIMEOUT_S * 1000, PUMP_DATAGRAMS)
        if handle == ffi.NULL:
            raise MemoryError
        self._handle = ffi.gc(handle, lib.nr_pump_free)

    def read(self, room: Any, start: int, *, until_done: bool, timeout_ms: int) -> tuple[Any, int]:
        """Fill ``room`` from index ``start`` on, until it is full or the dump is done."""
        progress = ffi.new("struct nr_progress *", {"records": start})
        return progress, lib.nr_pump_flows(self._handle, self._context, room, len(room), progress)


def decode_error(operation: str, problem: int, offset: int) -> DecodeError:
    """Return the error that an enum nr_problem is."""
    words = ffi.string(lib.nr_problem_text(problem)).decode()
    return DecodeError(operation, f"{words}, in the message at byte {offset}")


def _request_dump(source: socket.socket, request: bytes, operation: str) -> None:
    """Send a request for a dump; raise what the kernel says at once, before it dumps anything."""
    try:
        source.send(request)
        first = source.recv(_HEADER.size, socket.MSG_PEEK)
        if _HEADER.unpack_from(first)[1] == lib.NLMSG_ERROR:
            for answer in split_messages(source.recv(DUMP_BYTES)):
                _raise_refusal(operation, answer)
    except TimeoutError:
        raise refusal(operation, errno.ETIMEDOUT) from None
    except OSError as error:
        raise refusal(operation, error.errno or errno.EIO) from None


class Dump:
    """A dump under way: the request is sent, the answer is read piece by piece."""

    def __init__(
        self,
        source: socket.socket,
        request: bytes,
        kind: Receive,
        context: Any,
        operation: str,
        *,
        pumped: bool = False,
    ) -> None:
        self.done = False
        self._operation = operation
        _request_dump(source, request, operation)
        self._receiver = (
            Pump(source, context) if pumped else Receiver(source, kind, context, DUMP_DATAGRAMS, DUMP_BYTES)
        )

    def fill(self, buffer: Any, start: int) -> int:
        """Fill a buffer of records from index ``start`` on, return up to where; ``done`` tells whether that was all."""
        end = start
        with self._receiver.room(buffer) as room:
            while not self.done and end < len(room):
                progress, problem = self._receiver.read(room, end, until_done=True, timeout_ms=ANSWER_TIMEOUT_S * 1000)
                if problem:
                    raise decode_error(self._operation, problem, progress.offset)
                end = int(progress.records)
                self._check(progress)
        return end

    def close(self) -> None:
        """End it: before its socket is closed."""
        self._receiver.close()

    def _check(self, progress: Any) -> None:
        if progress.error:
            raise refusal(self._operation, progress.error)
        if progress.overruns or progress.flags & (lib.NR_OVERRUN | lib.NR_INTERRUPTED):
            raise NetlinkError(self._operation, errno.EINTR, "the table changed so that the dump is incomplete")
        self.done = bool(progress.flags & (lib.NR_DONE | lib.NR_ANSWERED))
        if not self.done and progress.flags & lib.NR_DRAINED and not progress.flags & lib.NR_SIGNAL:
            raise refusal(self._operation, errno.ETIMEDOUT)


def collect(dump: Dump, dtype: np.dtype[Any], expected: int) -> np.ndarray[Any, Any]:
    """Return all records of a dump as one array; it starts with room for ``expected`` and grows in place."""
    import numpy as np

    records = np.empty(expected, dtype)
    end = dump.fill(records.view("u1"), 0)
    while not dump.done:
        # realloc moves pages, not bytes, for arrays of this size; nothing else refers to the array yet.
        records.resize(len(records) * 2, refcheck=False)
        end = dump.fill(records.view("u1"), end)
    records.resize(end, refcheck=False)
    return records


def collect_bytes(dump: Dump, record_bytes: int, expected: int) -> bytearray:
    """Return all records of a dump as bytes: for what has to start before numpy is imported."""
    records = bytearray(expected * record_bytes)
    end = dump.fill(records, 0)
    while not dump.done:
        records.extend(bytes(len(records)))
        end = dump.fill(records, end)
    del records[end * record_bytes :]
    return records


def batches(dump: Dump, dtype: np.dtype[Any], size: int) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the records of a dump as arrays of up to ``size``, each its own memory."""
    import numpy as np

    while not dump.done:
        records = np.empty(size, dtype)
        end = dump.fill(records.view("u1"), 0)
        if end:
            yield records[:end]


def once_more(read: Callable[[], _T], attempts: int = 4) -> _T:
    """Return what ``read`` returns, trying again when the table changed under it (EINTR)."""
    for _ in range(attempts - 1):
        try:
            return read()
        except NetlinkError as error:
            if error.errno != errno.EINTR:
                raise
    return read()
