"""One lease: a tuple that is held, connected with, and given back."""

from __future__ import annotations

import enum
import errno
import os
import socket
import threading
from types import TracebackType
from typing import TYPE_CHECKING

from nat_rewriter.errors import ConnectFailed, LeaseError, LeaseLost, NatctlError
from nat_rewriter.kernel.connections import Connection, await_connection
from nat_rewriter.kernel.lease_entries import Way
from nat_rewriter.kernel.placeholders import abort_on_close, take_error
from nat_rewriter.lease.strategies import Strategy
from nat_rewriter.model.slices import Slice
from nat_rewriter.model.tuples import FlowTuple

if TYPE_CHECKING:
    from nat_rewriter.lease.lessor import Lessor

CONNECT_WITHIN_S = 10.0
_CONNECT = "connect from lease"
# What connect() says where another local socket has the tuple, or the port for itself.
TAKEN = (errno.EADDRNOTAVAIL, errno.EADDRINUSE)


class State(enum.Enum):
    """Where a lease is in its life."""

    HELD = "held"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    RELEASED = "released"
    LOST = "lost"


class Lease:
    """The right to a tuple until it is released; made by a :class:`Lessor`. A context manager. Thread-safe.

    ``port`` is 0 as long as the strategy leaves the choice to the kernel, that is, until the socket connects.
    """

    __slots__ = (
        "__weakref__", "_begun", "_holder", "_lessor", "_lock", "pooled", "port", "slice", "socket", "state",
        "strategy", "way",
    )  # fmt: skip

    def __init__(
        self, lessor: Lessor, owned: Slice, way: Way, port: int, strategy: Strategy,
        holder: socket.socket | None = None, *, pooled: bool = False, begun: Connection | None = None,
    ) -> None:  # fmt: skip
        self.slice, self.way, self.port, self.strategy = owned, way, port, strategy
        self.pooled = pooled  # its port came from the line of the slice, and goes back there
        self.state = State.CONNECTING if begun else State.HELD
        self.socket: socket.socket | None = begun.sock if begun else None
        self._begun = begun
        self._lessor, self._holder = lessor, holder
        self._lock = threading.Lock()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Lease {self.tuple} {self.strategy.name} {self.state.value}>"

    @property
    def tuple(self) -> FlowTuple:
        """The tuple as it is on the wire."""
        return self.way.at(self.port)

    @property
    def lost(self) -> bool:
        """Whether a NAT flow took the tuple after its entry had been deleted behind the lease's back."""
        return self.state is State.LOST

    def connect(self, timeout_s: float = CONNECT_WITHIN_S) -> socket.socket:
        """Return a connected, blocking socket with the leased port. UDP: nothing is sent.

        The lease keeps the socket and closes it when it is released; :meth:`detach` takes it out. On an error the
        lease is over and nothing of it is left. Raises LeaseLost where another has the tuple, ConnectFailed where the
        destination refuses, resets or does not answer in time.
        """
        begun = self._begun if self._begun and self.state is State.CONNECTING else self._begin()
        outcome = begun.outcome
        if outcome is None:
            try:
                outcome = await_connection(begun.sock, timeout_s)
            except BaseException:
                self._fail()
                raise
        return self._conclude(begun.sock, outcome, timeout_s)

    def begin(self) -> socket.socket:
        """Send the SYN and return the socket, non-blocking: for event loops; :meth:`finish` when it is writable."""
        sock = self._begin().sock
        sock.setblocking(False)
        return sock

    def _begin(self) -> Connection:
        with self._lock:
            if self.state is not State.HELD:
                raise LeaseError(_CONNECT, f"the lease is {self.state.value}", self.tuple)
            self.state = State.CONNECTING
            holder, self._holder = self._holder, None
        try:
            begun = self._begun = self._lessor.begin(self, holder)
            self.socket = begun.sock
            return begun
        except OSError as error:
            self._fail()
            raise self._refused(error.errno or errno.EIO) from None
        except NatctlError:
            self._fail()
            raise

    def finish(self, silent_for_s: float | None = None) -> socket.socket:
        """Return the socket that :meth:`begin` began, connected and blocking; ``silent_for_s``: no answer came."""
        with self._lock:
            if self.state is not State.CONNECTING or self._begun is None:
                raise LeaseError(_CONNECT, f"the lease is {self.state.value}", self.tuple)
            sock, _, outcome = self._begun
        if outcome is None and silent_for_s is None:
            outcome = take_error(sock)
        return self._conclude(sock, outcome, silent_for_s or 0)

    def _conclude(self, sock: socket.socket, outcome: int | None, waited_s: float) -> socket.socket:
        """Return the socket, connected and blocking, or raise what the errno means; None: no answer came."""
        try:
            if outcome is None:
                raise ConnectFailed(_CONNECT, errno.ETIMEDOUT, f"no answer within {waited_s:g} s: '{self.tuple}'")
            if outcome:
                raise self._refused(outcome)
            self._lessor.verify(self)
        except NatctlError:
            abort_on_close(sock)
            self._fail()
            raise
        if self._begun is None or self._begun.outcome is None:
            sock.setblocking(True)
        with self._lock:
            self.state = State.CONNECTED
        return sock

    def detach(self) -> socket.socket:
        """Return the connected socket and end the lease: the connection holds the tuple from now on."""
        with self._lock:
            if self.state is not State.CONNECTED or self.socket is None:
                raise LeaseError("detach socket", f"the lease is {self.state.value}", self.tuple)
            sock, self.socket = self.socket, None
            self.state = State.RELEASED
        self._lessor.take_back([(self, State.CONNECTED)])
        return sock

    def wire_port(self) -> int | None:
        """Return the port that packets of the connection leave with, None where conntrack has seen none."""
        return self._lessor.wire_port(self)

    def release(self) -> None:
        """Give the tuple back, and close the socket. A connection ends as TCP ends it. Twice is no error."""
        self._end(State.RELEASED)

    def lose(self) -> None:
        """End the lease because somebody else has the tuple: called by the keeper."""
        with self._lock:
            if self.state is not State.HELD and self.way.protocol == "tcp":
                return
        self._end(State.LOST)

    def close(self, state: State = State.RELEASED) -> State | None:
        """Close what the lease has open; return the state before, None where it was over already.

        Who calls this has the lessor take the lease back.
        """
        with self._lock:
            before = self.state
            if before in (State.RELEASED, State.LOST):
                return None
            self.state = state
            for sock in (self.socket, self._holder):
                if sock is not None:
                    sock.close()
            self.socket = self._holder = None
        return before

    def _fail(self) -> None:
        self._end(State.RELEASED)

    def _end(self, state: State) -> None:
        before = self.close(state)
        if before is not None:
            self._lessor.take_back([(self, before)])

    def _refused(self, code: int) -> NatctlError:
        if code in TAKEN:
            return LeaseLost(_CONNECT, "another local socket has the tuple", self.tuple)
        return connect_failed(code, self.tuple)


def connect_failed(code: int, wanted: FlowTuple) -> ConnectFailed:
    """Return the error that a connection to a destination is that could not be had."""
    return ConnectFailed(_CONNECT, code, f"{os.strerror(code).lower()}: '{wanted}'")
