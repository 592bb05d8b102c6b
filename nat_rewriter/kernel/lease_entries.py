"""Conntrack entries that reserve tuples: made, looked at, renewed and deleted many at a time.

A reserving entry has the tuple that a local socket would send, not translated, and no TCP state (NONE): NAT avoids the
port, the socket that connects takes the entry over, and a stray RST does not end it, since tcp_conntracks[] of
nf_conntrack_proto_tcp.c calls a reset in that state invalid.

Requests for one way go out many in one send(2). Only the last asks for an acknowledgement: the kernel works through
them before send() returns, and answers the others only where it refuses.
"""

from __future__ import annotations

import errno
import functools
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from nat_rewriter.errors import NatctlError
from nat_rewriter.kernel import netlink
from nat_rewriter.kernel._core._native import ffi, lib
from nat_rewriter.kernel.conntrack_requests import (
    FAMILY_HEADER,
    conntrack_message,
    tuple_attribute,
    u32_attribute,
)
from nat_rewriter.model.flows import TCP_STATES, Status
from nat_rewriter.model.slices import Address
from nat_rewriter.model.tuples import FlowTuple

# At a time. A refusal, or an entry that was asked for, takes some 1300 bytes of the receive buffer.
_AT_ONCE = 64
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_RECEIVE_BYTES = 1 << 20
_Item = TypeVar("_Item")
_DOING = "reserve ports"


@dataclass(frozen=True, slots=True)
class Way:
    """All of a tuple but its source port: from a soft-unicast address to one port of a destination."""

    protocol: str
    src: Address
    dst: Address
    dport: int
    source: str = field(init=False, repr=False, compare=False)
    destination: tuple[str, int] = field(init=False, repr=False, compare=False)  # as connect() wants it
    ends: Any = field(init=False, repr=False, compare=False)  # struct nr_ends of the C core
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Addresses take microseconds to hash and to spell, and every lease needs both many times.
        object.__setattr__(self, "source", str(self.src))
        object.__setattr__(self, "destination", (str(self.dst), self.dport))
        object.__setattr__(self, "ends", _ends(self))
        object.__setattr__(self, "_hash", hash((self.protocol, self.src, self.dst, self.dport)))

    def __hash__(self) -> int:
        return self._hash

    def at(self, sport: int) -> FlowTuple:
        """Return the tuple with a source port."""
        return FlowTuple(self.protocol, self.src, sport, self.dst, self.dport)


@dataclass(frozen=True, slots=True)
class Entry:
    """What the table has under a tuple: seconds left, TCP state, the port on the wire, and whether an answer came."""

    timeout_s: int
    state: str
    wire_port: int
    answered: bool

    @property
    def untouched(self) -> bool:
        """Whether nobody has taken the reservation over: no TCP packet passed, no datagram came back."""
        return self.state == "NONE" or (not self.state and not self.answered)

    @property
    def standing(self) -> bool:
        """Whether there is, or was until now, a TCP connection that both ends knew of."""
        return self.state in ("ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT")

    @property
    def over(self) -> bool:
        """Whether its TCP connection has ended."""
        return self.state in ("TIME_WAIT", "CLOSE")


def _ends(way: Way) -> Any:
    kind, scope = KINDS[way.protocol], getattr(way.dst, "scope_id", None)
    ends = ffi.new("struct nr_ends *", {"dport": way.dport, "family": FAMILIES[way.src.version], "kind": kind})
    ffi.memmove(ends.src, way.src.packed, len(way.src.packed))
    ffi.memmove(ends.dst, way.dst.packed, len(way.dst.packed))
    if scope:
        ends.scope = int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)
    return ends


class LeaseEntries:
    """A netlink socket for reservations, in the network namespace of the thread that opens it. Thread-safe.

    Raises PermissionNeeded without CAP_NET_ADMIN. Results are by port, in the order of the ports.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = _AT_ONCE  # the last number of a question; those below belong to bulk requests
        self._socket = netlink.open_socket(lib.NETLINK_NETFILTER, _DOING)
        self._socket.setsockopt(lib.SOL_NETLINK, lib.NETLINK_EXT_ACK, 0)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, lib.SO_RCVBUFFORCE, _RECEIVE_BYTES)
        except PermissionError:  # of the initial namespace: then as much as anyone may have
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
        self._socket.bind((0, 0))  # the kernel chooses the port id

    @property
    def port_id(self) -> int:
        """The port id of the netlink socket, by which the kernel says who deleted an entry."""
        return int(self._socket.getsockname()[0])

    def close(self) -> None:
        """Close the netlink socket; entries stay until their timeout."""
        with self._lock:
            self._socket.close()

    def insert(self, way: Way, ports: Sequence[int], timeout_s: int) -> list[bool]:
        """Reserve ports; tell of each whether it is reserved now. False: an entry has that tuple already."""
        codes = self._change(_insertion(way, timeout_s), ports, {errno.EEXIST})
        return [code == 0 for code in codes]

    def replace(self, way: Way, ports: Sequence[int], timeout_s: int) -> list[bool]:
        """Delete what local flows left behind and reserve the ports at once; False where a NAT flow was faster."""
        messages = [
            message
            for port in ports
            for message in (_at_port(_deletion(way), port), _at_port(_insertion(way, timeout_s), port))
        ]
        codes = self._run(messages, {errno.EEXIST, errno.ENOENT})
        return [code == 0 for code in codes[1::2]]

    def renew(self, way: Way, ports: Sequence[int], timeout_s: int) -> list[bool]:
        """Give entries their whole time again; tell of each whether it was there."""
        codes = self._change(_renewal(way, timeout_s), ports, {errno.ENOENT})
        return [code == 0 for code in codes]

    def delete(self, way: Way, ports: Sequence[int]) -> list[bool]:
        """Delete entries; tell of each whether it was there. NAT flows on the same port are never meant."""
        codes = self._change(_deletion(way), ports, {errno.ENOENT})
        return [code == 0 for code in codes]

    def look(self, way: Way, ports: Sequence[int]) -> list[Entry | None]:
        """Return the entries whose original tuple this is; None where there is none."""
        found: list[Entry | None] = []
        template = _question(way)
        for some in _chunks(ports):
            answers: dict[int, bytes] = {}
            codes = self._exchange([_at_port(template, port) for port in some], answers)
            _refuse(codes, {errno.ENOENT})
            found += [_entry(answers[at]) if at in answers else None for at in range(len(some))]
        return found

    def get_wire_port(self, way: Way, port: int) -> int | None:
        """Return the port with which packets of the tuple leave this host; None where it has no entry."""
        flow = ffi.new("struct nr_flow *")
        with self._lock:
            self._asked = (self._asked + 1) & 0xFFFFFFFF
            request = _at_port(_question(way), port)
            code = lib.nr_ask_flow(self._socket.fileno(), ffi.from_buffer(request), len(request), self._asked, flow)
        if code not in (0, errno.ENOENT):
            raise netlink.refusal(_DOING, code)
        return int(flow.reply_dport) if code == 0 else None

    def _change(self, template: _Template, ports: Sequence[int], expected: set[int]) -> list[int]:
        return self._run([_at_port(template, port) for port in ports], expected)

    def _run(self, messages: Sequence[bytearray], expected: set[int]) -> list[int]:
        codes: list[int] = []
        for some in _chunks(messages):
            answered = self._exchange(some, {})
            _refuse(answered, expected)
            codes += (answered.get(at, 0) for at in range(len(some)))
        return codes

    def _exchange(self, messages: Sequence[bytearray], answers: dict[int, bytes]) -> dict[int, int]:
        """Send messages and return the errno of those that were refused, by position; fill in what was answered."""
        with self._lock:
            return netlink.exchange(self._socket, messages, _DOING, answers)


class _Template(NamedTuple):
    """A request, and where it has the leased port, in network order."""

    request: bytes
    at: tuple[int, ...]


def _template(build: Callable[[int], bytes]) -> _Template:
    """Return a request as a template: where it differs for two ports that share no byte is the port."""
    low, high = build(0), build(0xFFFF)
    differing = [at for at, (one, other) in enumerate(zip(low, high, strict=True)) if one != other]
    return _Template(low, tuple(differing[::2]))


def _at_port(template: _Template, port: int) -> bytearray:
    message = bytearray(template.request)
    for at in template.at:
        struct.pack_into("!H", message, at, port)
    return message


@functools.lru_cache(maxsize=1024)
def _insertion(way: Way, timeout_s: int) -> _Template:
    flags = lib.NLM_F_CREATE | lib.NLM_F_EXCL
    times = u32_attribute(lib.CTA_TIMEOUT, timeout_s), u32_attribute(lib.CTA_STATUS, Status.CONFIRMED)

    def build(port: int) -> bytes:
        original = way.at(port)
        return conntrack_message(
            lib.IPCTNL_MSG_CT_NEW, flags, way.src.version, tuple_attribute(lib.CTA_TUPLE_ORIG, original),
            tuple_attribute(lib.CTA_TUPLE_REPLY, original.reversed()), *times,
        )  # fmt: skip

    return _template(build)


@functools.lru_cache(maxsize=1024)
def _renewal(way: Way, timeout_s: int) -> _Template:
    return _template(lambda port: _about(lib.IPCTNL_MSG_CT_NEW, way, port, u32_attribute(lib.CTA_TIMEOUT, timeout_s)))


@functools.lru_cache(maxsize=1024)
def _deletion(way: Way) -> _Template:
    return _template(lambda port: _about(lib.IPCTNL_MSG_CT_DELETE, way, port))


@functools.lru_cache(maxsize=1024)
def _question(way: Way) -> _Template:
    return _template(lambda port: _about(lib.IPCTNL_MSG_CT_GET, way, port))


def _about(operation: int, way: Way, port: int, *more: bytes) -> bytes:
    original = tuple_attribute(lib.CTA_TUPLE_ORIG, way.at(port))
    return conntrack_message(operation, 0, way.src.version, original, *more)


def _chunks(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))


def _refuse(codes: dict[int, int], expected: set[int]) -> None:
    """Raise the first refusal that is none of those expected."""
    for code in codes.values():
        if code and code not in expected:
            raise _refusal(code)


def _refusal(code: int) -> NatctlError:
    if code == errno.ENOMEM:
        return netlink.refusal(_DOING, code, "the conntrack table may be full")
    return netlink.refusal(_DOING, code)


def _entry(answer: bytes) -> Entry:
    attributes = netlink.read_attributes(answer[netlink.MESSAGE_HEADER + FAMILY_HEADER :])
    reply = netlink.read_attributes(attributes[lib.CTA_TUPLE_REPLY])
    ends = netlink.read_attributes(reply[lib.CTA_TUPLE_PROTO])
    return Entry(
        int.from_bytes(attributes.get(lib.CTA_TIMEOUT, b"")),
        _tcp_state(attributes.get(lib.CTA_PROTOINFO, b"")),
        int.from_bytes(ends[lib.CTA_PROTO_DST_PORT]),
        bool(int.from_bytes(attributes.get(lib.CTA_STATUS, b"")) & Status.SEEN_REPLY),
    )


def _tcp_state(information: bytes) -> str:
    """Return the name of a TCP state, nothing for other protocols."""
    tcp = netlink.read_attributes(netlink.read_attributes(information).get(lib.CTA_PROTOINFO_TCP, b""))
    if lib.CTA_PROTOINFO_TCP_STATE not in tcp:
        return ""
    return TCP_STATES[tcp[lib.CTA_PROTOINFO_TCP_STATE][0]]
