"""How connections end, and what is known of each: the words for enum relay_outcome in _core/relay.h."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from nat_rewriter.model.proxies import Endpoint


class Outcome(enum.IntEnum):
    """How a connection ended; the numbers are those of the relay."""

    FINISHED = 0
    RESET = 1
    CLIENT_LEFT = 2
    IDLE = 3
    BAD_REQUEST = 4
    SLOW_REQUEST = 5
    NOT_AUTHORIZED = 6
    FORBIDDEN = 7
    LOOP = 8
    UNRESOLVED = 9
    EXHAUSTED = 10
    REFUSED = 11
    UNREACHABLE = 12
    CONNECT_TIMEOUT = 13
    LIMIT = 14
    NO_DESCRIPTORS = 15
    FAILED = 16
    ENDED = 17

    @property
    def word(self) -> str:
        """The word of JSON lines and metrics."""
        return self.name.lower().replace("_", "-")


MEANINGS = {
    Outcome.FINISHED: "both sides were done",
    Outcome.RESET: "one side reset it",
    Outcome.CLIENT_LEFT: "the client left before there was a connection",
    Outcome.IDLE: "no byte came for idle_timeout",
    Outcome.BAD_REQUEST: "the client sent what is no request of this protocol",
    Outcome.SLOW_REQUEST: "the client did not finish its request within connect_timeout",
    Outcome.NOT_AUTHORIZED: "the client did not show the right name and password",
    Outcome.FORBIDDEN: "the client asked for this host itself, a group, or a link",
    Outcome.LOOP: "the connection came from, or was for, the proxy itself",
    Outcome.UNRESOLVED: "the name could not be resolved",
    Outcome.EXHAUSTED: "every port of the slices is in use towards this destination",
    Outcome.REFUSED: "the destination refused it",
    Outcome.UNREACHABLE: "there is no way to the destination, or no slice of its family",
    Outcome.CONNECT_TIMEOUT: "the destination did not answer within connect_timeout",
    Outcome.LIMIT: "there are max_connections already",
    Outcome.NO_DESCRIPTORS: "this host is out of descriptors or memory",
    Outcome.FAILED: "the kernel refused it",
    Outcome.ENDED: "the proxy was stopped",
}


@dataclass(frozen=True, slots=True)
class ConnectionEnd:
    """The end of one connection. ``host``: as the client named it; ``error``: an errno, or 0."""

    proxy: int
    worker: int
    outcome: Outcome
    error: int
    bytes_up: int
    bytes_down: int
    duration_ms: int
    client: Endpoint | None
    destination: Endpoint | None
    source: Endpoint | None
    host: str
