"""Traffic through the hosts of a fleet: short flows of UDP and TCP that are opened all the time, and some that stay."""

from __future__ import annotations

import errno
import selectors
import socket
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from netns_lab.host import Host
from netns_lab.servers import Endpoint

_TICK_S = 0.25
# After so long without an answer a flow is given up; one that stays is opened anew, as a program would.
_PATIENCE_S = {"udp": 1.5, "tcp": 1.5, "staying": 8.0}
_STAYING = 2  # UDP flows for each host
_TCP_EVERY = 2  # ticks
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


@dataclass(slots=True, eq=False)
class _Attempt:
    """A flow: through which host, of which kind, when it was opened or last answered, and whether it has sent."""

    sock: socket.socket
    host: int
    kind: str
    last: float
    sent: bool = True


class Traffic:
    """Sends from clients, each behind one host, until closed. ``clients``: host -> address of the client behind it.

    All of it is done by one thread, in the clients' namespace.
    """

    def __init__(self, place: Host, clients: Mapping[int, str], udp: Endpoint, tcp: Endpoint) -> None:
        self._place, self._clients, self._udp, self._tcp = place, clients, udp, tcp
        self.answered = {(host, kind): 0.0 for host in clients for kind in ("udp", "tcp", "staying")}
        self.unanswered = dict.fromkeys(self.answered, 0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop sending."""
        self._ended.set()
        self._thread.join()

    def works(self, host: int, since: float) -> bool:
        """Tell whether flows of both kinds that were opened after a time (of the wall clock) were answered."""
        return all(self.answered[host, kind] >= since for kind in ("udp", "tcp"))

    def reset_counts(self) -> None:
        """Count flows without an answer from zero."""
        self.unanswered = dict.fromkeys(self.unanswered, 0)

    def lost(self) -> int:
        """Return how many short flows have had no answer since the counts were reset."""
        return sum(count for (_, kind), count in self.unanswered.items() if kind != "staying")

    def _run(self) -> None:
        with self._place.enter(), selectors.DefaultSelector() as selector:
            tick, due = 0, time.monotonic()
            while not self._ended.is_set():
                if time.monotonic() >= due:
                    tick, due = tick + 1, time.monotonic() + _TICK_S
                    self._forget_old(selector)
                    self._open_some(selector, tick)
                for key, _ in selector.select(max(0.0, due - time.monotonic())):
                    self._go_on(selector, key.data)
            for key in list(selector.get_map().values()):
                key.data.sock.close()

    def _open_some(self, selector: selectors.BaseSelector, tick: int) -> None:
        staying = [key.data for key in selector.get_map().values() if key.data.kind == "staying"]
        for host in self._clients:
            kinds = ["udp"] + ["tcp"] * (tick % _TCP_EVERY == host % _TCP_EVERY)
            kinds += ["staying"] * (_STAYING - sum(attempt.host == host for attempt in staying))
            for kind in kinds:
                attempt = self._attempt(host, kind)
                staying += [attempt] * (kind == "staying")
                selector.register(
                    attempt.sock, selectors.EVENT_READ if attempt.sent else selectors.EVENT_WRITE, attempt
                )
        for attempt in staying:
            _send(attempt)

    def _attempt(self, host: int, kind: str) -> _Attempt:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind((self._clients[host], 0))
        if kind == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        code = sock.connect_ex(self._tcp if kind == "tcp" else self._udp)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, f"connect from {self._clients[host]}")
        attempt = _Attempt(sock, host, kind, time.time(), sent=kind != "tcp")
        if kind == "udp":
            _send(attempt)
        return attempt

    def _go_on(self, selector: selectors.BaseSelector, attempt: _Attempt) -> None:
        """Send what has not been sent; or take note of an answer, or of a refusal."""
        if not attempt.sent:
            attempt.sent = True
            _send(attempt)
            selector.modify(attempt.sock, selectors.EVENT_READ, attempt)
            return
        try:
            answered = bool(attempt.sock.recv(64))
        except OSError:
            answered = False
        if answered and attempt.kind == "staying":
            attempt.last = time.time()
        if answered:
            self.answered[attempt.host, attempt.kind] = attempt.last
        if attempt.kind != "staying":
            self._end(selector, attempt, answered)

    def _forget_old(self, selector: selectors.BaseSelector) -> None:
        now = time.time()
        for key in list(selector.get_map().values()):
            if key.data.last < now - _PATIENCE_S[key.data.kind]:
                self._end(selector, key.data, False)

    def _end(self, selector: selectors.BaseSelector, attempt: _Attempt, answered: bool) -> None:
        self.unanswered[attempt.host, attempt.kind] += not answered
        selector.unregister(attempt.sock)
        attempt.sock.close()


def _send(attempt: _Attempt) -> None:
    with suppress(OSError):
        attempt.sock.send(b"natctl")
