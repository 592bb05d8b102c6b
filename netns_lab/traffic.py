"""Traffic through the hosts of a fleet: short flows of UDP and TCP that are opened all the time, and some that stay."""

from __future__ import annotations

import errno
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from netns_lab.host import Host, family_of
from netns_lab.servers import Endpoint

_TICK_S = 0.25
# What has no answer after so long is given up; a flow that stays is opened anew then, as a program would.
_PATIENCE_S, _PATIENCE_STAYING_S = 1.5, 8.0
_TCP_EVERY = 2  # ticks
_REMEMBERED = 20_000  # of what had no answer
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)
_NUMBER = struct.Struct("!Q")


class Kind(NamedTuple):
    """What a flow is."""

    protocol: str
    version: int  # of IP
    stays: bool = False


KINDS = tuple(Kind(protocol, version) for protocol in ("udp", "tcp") for version in (4, 6))


class Loss(NamedTuple):
    """A short flow, a datagram of one that stays, or the end of one that stays: sent at a time, and never answered."""

    time: float
    host: int
    kind: Kind


@dataclass(slots=True, eq=False)
class Flow:
    """A flow from a client, and the host by which it goes.

    ``source`` is the client's own address and port; ``last`` is when it was opened or last answered; ``asked`` has the
    datagrams that wait for an answer, by their numbers, and when each was sent.
    """

    sock: socket.socket
    host: int
    kind: Kind
    opened: float
    last: float
    source: Endpoint
    connected: bool
    asked: dict[int, float] = field(default_factory=dict)
    ended: bool = False

    def begin(self) -> None:
        """Send something, if it may be."""
        if not self.connected:
            return
        number = time.monotonic_ns()
        if self.kind.protocol == "udp":
            self.asked[number] = time.time()
        with suppress(OSError):
            self.sock.send(_NUMBER.pack(number))

    def hear(self) -> bool:
        """Take an answer; False where there is none, and the flow is at its end."""
        try:
            told = self.sock.recv(_NUMBER.size)
        except OSError:
            return False
        if told and self.kind.stays:
            self.last = time.time()
        if len(told) == _NUMBER.size:
            self.asked.pop(_NUMBER.unpack(told)[0], None)
        return bool(told)

    def send_by(self, host: int) -> None:
        """Send its packets by another host from now on, by a mark with the host's number."""
        self.host = host
        with suppress(OSError):  # it has ended
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, host)


class Traffic:
    """Sends from clients, each behind one host, to servers of both IP versions, until closed.

    ``clients``: host -> IP version -> address of the client behind it. ``servers``: protocol, IP version -> server. All
    of it is done by one thread, in the clients' namespace.
    """

    def __init__(
        self, place: Host, clients: Mapping[int, Mapping[int, str]], servers: Mapping[tuple[str, int], Endpoint]
    ) -> None:
        self._place, self._clients, self._servers = place, clients, servers
        self._answered = {(host, kind): 0.0 for host in clients for kind in KINDS}
        self._lost = deque[Loss](maxlen=_REMEMBERED)
        self._staying: list[Flow] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop sending."""
        self._ended.set()
        self._thread.join()

    def works(self, host: int, since: float) -> bool:
        """Tell whether flows of all kinds that were opened after a time (of the wall clock) were answered."""
        return all(self._answered[host, kind] >= since for kind in KINDS)

    def lost(self, since: float) -> list[Loss]:
        """Return what was sent after a time (of the wall clock), and had no answer; what is new may still have one."""
        return [loss for loss in tuple(self._lost) if loss.time >= since]

    def staying(self, sources: Collection[Endpoint]) -> list[Flow]:
        """Return the flows that stay and are from these addresses and ports."""
        return [flow for flow in tuple(self._staying) if flow.source in sources]

    def _run(self) -> None:
        with self._place.enter(), selectors.DefaultSelector() as selector:
            tick, due = 0, time.monotonic()
            while not self._ended.is_set():
                if time.monotonic() >= due:
                    tick, due = tick + 1, time.monotonic() + _TICK_S
                    self._give_up_old(selector)
                    self._open_some(selector, tick)
                for key, _ in selector.select(max(0.0, due - time.monotonic())):
                    self._go_on(selector, key.data)
            for key in list(selector.get_map().values()):
                key.data.sock.close()

    def _open_some(self, selector: selectors.BaseSelector, tick: int) -> None:
        for host in self._clients:
            there = {flow.kind for flow in self._staying if flow.host == host}
            staying = {kind._replace(stays=True) for kind in KINDS} - there
            turn = tick % _TCP_EVERY == host % _TCP_EVERY
            for kind in (*staying, *(kind for kind in KINDS if kind.protocol == "udp" or turn)):
                flow = self._opened(host, kind)
                selector.register(flow.sock, selectors.EVENT_READ if flow.connected else selectors.EVENT_WRITE, flow)
                if kind.stays:
                    self._staying.append(flow)
                else:
                    flow.begin()
        for flow in self._staying:
            flow.begin()

    def _opened(self, host: int, kind: Kind) -> Flow:
        address, tcp = self._clients[host][kind.version], kind.protocol == "tcp"
        sock = socket.socket(family_of(address), socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind((address, 0))
        if tcp:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        code = sock.connect_ex(self._servers[kind.protocol, kind.version])
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, f"connect from {address}")
        now, source = time.time(), sock.getsockname()[:2]
        return Flow(sock, host, kind, now, now, source, connected=not tcp)

    def _go_on(self, selector: selectors.BaseSelector, flow: Flow) -> None:
        """Send what could not be sent before; or take note of an answer, or of a refusal."""
        if not flow.connected:
            flow.connected = True
            selector.modify(flow.sock, selectors.EVENT_READ, flow)
            flow.begin()
            return
        answered = flow.hear()
        if answered and not flow.kind.stays:
            self._answered[flow.host, flow.kind] = flow.opened
        if not (answered and flow.kind.stays):
            self._end(selector, flow, answered)

    def _give_up_old(self, selector: selectors.BaseSelector) -> None:
        now = time.time()
        for key in list(selector.get_map().values()):
            flow = key.data
            if flow.last < now - (_PATIENCE_STAYING_S if flow.kind.stays else _PATIENCE_S):
                self._end(selector, flow, False)
            elif flow.kind.stays:
                self._note_lost_datagrams(flow, now)

    def _note_lost_datagrams(self, flow: Flow, now: float) -> None:
        for number, sent in list(flow.asked.items()):
            if sent < now - _PATIENCE_S:
                del flow.asked[number]
                self._lost.append(Loss(sent, flow.host, flow.kind))

    def _end(self, selector: selectors.BaseSelector, flow: Flow, answered: bool) -> None:
        if flow.kind.stays:
            self._staying.remove(flow)
        if not answered:
            unheard = flow.last + _TICK_S if flow.kind.stays else flow.opened
            self._lost.append(Loss(unheard, flow.host, flow.kind))
        flow.ended = True
        selector.unregister(flow.sock)
        flow.sock.close()
