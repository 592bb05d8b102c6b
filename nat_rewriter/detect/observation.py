"""What was seen in one look: the input of every detection."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nat_rewriter.detect.keys import byte_flags
from nat_rewriter.detect.ownership import NOBODY, SliceIndex
from nat_rewriter.detect.parties import IS_PORTLESS
from nat_rewriter.detect.uses import Counted, FlowCount, Use, UseCount, fewest_flows
from nat_rewriter.model.flows import FLOW_FIELDS, Event, Status
from nat_rewriter.model.policy import Coexist
from nat_rewriter.model.slices import PortRange, Slice
from nat_rewriter.model.sockets import SOCKET_FIELDS, SOCKET_STATES

Rows = NDArray[Any]

TCP = 6
UDP = 17
PORTED = byte_flags((TCP, UDP))

_LISTEN = SOCKET_STATES.index("LISTEN")
_UNCONNECTED = SOCKET_STATES.index("CLOSE")
# Sockets that a process still talks through; a TIME_WAIT remainder suffers nothing.
_CONNECTED = byte_flags(
    SOCKET_STATES.index(name) for name in SOCKET_STATES if name not in ("NONE", "TIME_WAIT", "CLOSE", "LISTEN")
)


@dataclass(frozen=True, slots=True)
class Loss:
    """Events that the kernel dropped, and what the resync found to be different: counts of entries.

    ``number`` tells one loss from the next.
    """

    events: int
    added: int = 0
    removed: int = 0
    changed: int = 0
    number: int = 0

    @property
    def entries(self) -> int:
        """How many entries the resync changed in all."""
        return self.added + self.removed + self.changed


@dataclass(frozen=True, slots=True)
class HostSettings:
    """The sysctls that detection depends on; the defaults raise no finding."""

    ephemeral: PortRange | None = None  # net.ipv4.ip_local_port_range
    reserved: tuple[PortRange, ...] = ()  # net.ipv4.ip_local_reserved_ports
    tcp_early_demux: bool = True


def picked(records: Rows, which: Rows) -> Rows:
    """Return ``records[which]``: as opaque bytes, for numpy copies structures field by field, ten times slower."""
    chosen: Rows = records.view(np.dtype((np.void, records.dtype.itemsize)))[which].view(records.dtype)
    return chosen


def no_flows() -> Rows:
    """Return a flow table without entries."""
    return np.zeros(0, dtype=FLOW_FIELDS)


def no_sockets() -> Rows:
    """Return a socket table without sockets."""
    return np.zeros(0, dtype=SOCKET_FIELDS)


@dataclass(frozen=True)
class Observation:
    """One look at a host: flows as FLOW_FIELDS, sockets as SOCKET_FIELDS, and the configuration they are judged by.

    ``drift`` says how the live table differs from the configuration, one sentence an item. Where flows were ``sifted``
    before, that has counted all of them, and ``flows`` are those alone that have to be seen one by one.
    ``tunnel_mark``: mark and mask of flows that a tunnel sends from soft-unicast addresses; without mask: none.
    """

    index: SliceIndex
    flows: Rows = field(default_factory=no_flows)
    sockets: Rows = field(default_factory=no_sockets)
    coexist: Coexist = Coexist.CONFINE
    drift: tuple[str, ...] = ()
    loss: Loss | None = None
    host: HostSettings = HostSettings()
    pressure: float = 0.8
    sifted: Counted | None = None
    tunnel_mark: tuple[int, int] = (0, 0)

    @property
    def slices(self) -> tuple[Slice, ...]:
        """The slices of the configuration."""
        return self.index.slices

    @cached_property
    def local_rows(self) -> Rows:
        """Rows of the flows whose original source is a soft-unicast address."""
        return self._live(np.flatnonzero(self._source_numbers != NOBODY))

    @cached_property
    def wire_rows(self) -> Rows:
        """Rows of the flows whose packets leave from a soft-unicast address, rewritten or not."""
        return self._live(np.flatnonzero(self._wire_numbers != NOBODY))

    @cached_property
    def local(self) -> Rows:
        """The flows whose original source is a soft-unicast address."""
        return picked(self.flows, self.local_rows)

    @cached_property
    def local_slices(self) -> Rows:
        """For each of ``local`` the number of the slice that owns its original source, NOBODY where none does."""
        numbers = self._source_numbers[self.local_rows]
        return self.index.owners(numbers, self.local["protocol"], self.local["orig_sport"])

    @cached_property
    def tunnelled(self) -> Rows:
        """Of ``local``, whether a tunnel sends it, and no socket of this host."""
        mark, mask = self.tunnel_mark
        sent: Rows = (self.local["mark"] & mask) == mark if mask else np.zeros(len(self.local), dtype=bool)
        return sent

    @cached_property
    def rewritten(self) -> Rows:
        """Of ``local``, whether the port was rewritten: IPS_SRC_NAT, and another port than the socket's on the wire.

        An echo id belongs to both ends, and the kernel settles a collision of ids in the output hook, where it
        rewrites destinations: such a flow has IPS_DST_NAT instead.
        """
        status = self.local["status"]
        rewritten = (status & Status.SRC_NAT) != 0
        rewritten |= IS_PORTLESS[self.local["protocol"]] & ((status & Status.DST_NAT) != 0)
        moved: Rows = rewritten & (self.local["reply_dport"] != self.local["orig_sport"])
        return moved

    @cached_property
    def wire_numbers(self) -> Rows:
        """For each of ``wire_rows`` the number of its soft-unicast address."""
        return self._wire_numbers[self.wire_rows]

    @cached_property
    def forwarded(self) -> Rows:
        """For each of ``wire_rows`` whether its original source is no soft-unicast address."""
        forwarded: Rows = self._source_numbers[self.wire_rows] == NOBODY
        return forwarded

    @cached_property
    def uses(self) -> list[Use]:
        """The destinations towards which a slice is used beyond the threshold, or wholly."""
        share = min(self.pressure, 1.0)
        fewest = fewest_flows(self.index, share)
        return UseCount(self.sifted or self._count(fewest), self.index).beyond(share)

    @cached_property
    def counted(self) -> Counted:
        """The flows, counted."""
        return self.sifted or self._count()

    @cached_property
    def busiest(self) -> list[Use]:
        """For each slice in use the destination that uses most of its ports, the busiest first."""
        return UseCount(self.counted, self.index).busiest()

    @property
    def slice_flows(self) -> list[int]:
        """For each slice how many flows leave from it."""
        return self.counted.slice_flows

    def _count(self, fewest: int = 1) -> FlowCount:
        return FlowCount(self.flows, self.wire_rows, self.wire_numbers, self.index, fewest)

    @cached_property
    def socket_numbers(self) -> Rows:
        """For each socket the number of the soft-unicast address it is bound to, NOBODY for another."""
        return self.index.find_addresses(self.sockets["src"], self.sockets["family"])

    @cached_property
    def connected_rows(self) -> Rows:
        """Rows of the sockets that are connected from a port of a slice."""
        ported = PORTED[self.sockets["protocol"]]
        rows = np.flatnonzero((self.socket_numbers != NOBODY) & _CONNECTED[self.sockets["state"]] & ported)
        bound = self.sockets[rows]
        owners = self.index.owners(self.socket_numbers[rows], bound["protocol"], bound["sport"])
        connected: Rows = rows[owners != NOBODY]
        return connected

    @cached_property
    def waiting_rows(self) -> Rows:
        """Rows of the sockets that are bound without a peer: TCP listeners and unconnected UDP sockets."""
        states, protocols = self.sockets["state"], self.sockets["protocol"]
        return np.flatnonzero((states == _LISTEN) | ((states == _UNCONNECTED) & (protocols == UDP)))

    @cached_property
    def _source_numbers(self) -> Rows:
        return self.index.find_addresses(self.flows["orig_src"], self.flows["family"])

    @cached_property
    def _wire_numbers(self) -> Rows:
        return self.index.find_addresses(self.flows["reply_dst"], self.flows["family"])

    def _live(self, rows: Rows) -> Rows:
        live: Rows = rows[self.flows["event"][rows] != Event.DESTROY]
        return live
