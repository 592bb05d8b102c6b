"""Which flows of a table are asked for: filters over columns."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

import numpy as np

from nat_rewriter.detect.observation import TCP, Rows
from nat_rewriter.detect.placement import Placement
from nat_rewriter.model.flows import TCP_STATES, Origin, Present, Status
from nat_rewriter.model.tuples import PROTOCOL_NAMES

_ADDRESSES = ("orig_src", "orig_dst", "reply_src", "reply_dst")
_PORTS = ("orig_sport", "orig_dport", "reply_sport", "reply_dport")
_HALF = (1 << 64) - 1
# States that are no TCP states: `conntrack -L` prints them in brackets.
FLAG_STATES = {"UNREPLIED": (Status.SEEN_REPLY, False), "ASSURED": (Status.ASSURED, True)}


@dataclass(frozen=True, slots=True)
class Selection:
    """What a flow must be to be shown; None does not matter. ``state`` is a TCP state, UNREPLIED or ASSURED.

    An address or port matches where any end of either tuple has it; a port is also an echo id. ``began_before_ns`` and
    ``began_after_ns`` are times of the epoch; an entry without a timestamp is neither.
    """

    slice: str | None = None
    address: IPv4Network | IPv6Network | None = None
    port: int | None = None
    protocol: str | None = None
    state: str | None = None
    origin: Origin | None = None
    nat: bool = False
    began_before_ns: int | None = None
    began_after_ns: int | None = None

    @property
    def asks_for_age(self) -> bool:
        """Whether entries must have a timestamp to be shown."""
        return self.began_before_ns is not None or self.began_after_ns is not None

    def rows(self, flows: Rows, placement: Placement) -> Rows:
        """Return the rows of the flows that are all that is asked for."""
        chosen = np.ones(len(flows), dtype=bool)
        if self.slice is not None:
            chosen &= placement.with_slice(self.slice)
        if self.origin is not None:
            chosen &= placement.with_origin(self.origin)
        if self.address is not None:
            chosen &= _with_address(flows, self.address)
        if self.port is not None:
            chosen &= np.any([flows[name] == self.port for name in _PORTS], axis=0)
        if self.protocol is not None:
            chosen &= flows["protocol"] == protocol_number(self.protocol)
        if self.state is not None:
            chosen &= _in_state(flows, self.state)
        if self.nat:
            chosen &= (flows["status"] & (Status.SRC_NAT | Status.DST_NAT)) != 0
        if self.asks_for_age:
            chosen &= _began_between(flows, self.began_after_ns or 0, self.began_before_ns or (1 << 64) - 1)
        return np.flatnonzero(chosen)


def protocol_number(name: str) -> int:
    """Return the number of a protocol given by the kernel's name or by number."""
    numbers = {known: number for number, known in PROTOCOL_NAMES.items()}
    return numbers[name] if name in numbers else int(name)


def _with_address(flows: Rows, network: IPv4Network | IPv6Network) -> Rows:
    first, last = int(network.network_address), int(network.broadcast_address)
    found = [_between(flows[name], first, last) for name in _ADDRESSES]
    chosen: Rows = (flows["family"] == network.version) & np.any(found, axis=0)
    return chosen


def _between(halves: Rows, first: int, last: int) -> Rows:
    """Tell of each address whether it lies in a network, whose ends differ in low bits alone."""
    high, low = halves[:, 0], halves[:, 1]
    chosen: Rows = (
        (high >= np.uint64(first >> 64)) & (high <= np.uint64(last >> 64))
        & ((low >= np.uint64(first & _HALF)) & (low <= np.uint64(last & _HALF)))
    )  # fmt: skip
    return chosen


def _began_between(flows: Rows, first_ns: int, last_ns: int) -> Rows:
    began: Rows = flows["start_ns"]
    stamped = (flows["present"] & Present.TIMESTAMP) != 0
    between: Rows = stamped & (began >= np.uint64(first_ns)) & (began <= np.uint64(last_ns))
    return between


def _in_state(flows: Rows, state: str) -> Rows:
    if state in FLAG_STATES:
        bit, wanted = FLAG_STATES[state]
        flagged: Rows = ((flows["status"] & bit) != 0) == wanted
        return flagged
    inside: Rows = (flows["protocol"] == TCP) & (flows["tcp_state"] == TCP_STATES.index(state))
    return inside
