"""What the operator wants: the checked content of a configuration."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, NamedTuple

from nat_rewriter.model.slices import Address, PortRange, Slice

if TYPE_CHECKING:  # most configurations have none of these
    from nat_rewriter.model.inbound import Inbound
    from nat_rewriter.model.pools import Demand, Pool, StoreAddress
    from nat_rewriter.model.proxies import Proxy
    from nat_rewriter.model.route import Route

Network = IPv4Network | IPv6Network
# How the names of sets begin that say which flows are marked (Controller.marked_set).
MARKED = "marked"


class Coexist(enum.Enum):
    """How local sockets and packet rewriting share a slice."""

    OFF = "off"
    CONFINE = "confine"
    REFUSE = "refuse"
    SPLIT = "split"


class Guard(enum.Enum):
    """What happens to packets that leave a soft-unicast address outside its slices."""

    DROP = "drop"
    COUNT = "count"
    OFF = "off"


class Spread(enum.Enum):
    """What chooses among several ranges: a hash of the source, a hash of the 4-tuple, or chance."""

    CLIENT = "client"
    FLOW = "flow"
    RANDOM = "random"


class Timestamps(enum.Enum):
    """What happens to the TCP timestamp option of forwarded SYNs."""

    KEEP = "keep"
    STRIP = "strip"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that conntrack keeps an idle entry of a slice, by state; the defaults are the kernel's.

    ``tcp_time_wait`` is how long a closed connection holds its port towards one destination (RFC 6888, REQ-8).
    """

    tcp_syn_sent: int = 120
    tcp_syn_recv: int = 60
    tcp_established: int = 432000
    tcp_fin_wait: int = 120
    tcp_close_wait: int = 60
    tcp_last_ack: int = 30
    tcp_time_wait: int = 120
    tcp_close: int = 10
    tcp_retrans: int = 300
    tcp_unack: int = 300
    udp_unreplied: int = 30
    udp_replied: int = 120


@dataclass(frozen=True, slots=True)
class Controller:
    """The settings of the whole: the table's name and the behaviour of its chains.

    ``timeouts`` is None where the flows of slices keep the timeouts of the network namespace. ``local_mark`` is the bit
    of the conntrack mark that natctl may set on flows from soft-unicast addresses, 0 where it may set none.
    """

    table: str = "natctl"
    coexist: Coexist = Coexist.CONFINE
    guard: Guard = Guard.DROP
    srcnat_priority: int = 100
    dstnat_priority: int = -100
    timeouts: Timeouts | None = None
    local_mark: int = 0

    def marked_set(self, family: int) -> str:
        """Return the name of the set of soft-unicast addresses whose flows are all marked; the bit is part of it."""
        return f"{MARKED}{family}_{self.local_mark.bit_length() - 1}"


class SnatRule(NamedTuple):
    """Packets that match all given fields are rewritten into one of the slices; empty fields match everything.

    ``waits_for``: the IP versions of the rule's pools. While no slice of one is held, forwarded packets of it are
    dropped: their flows would keep the clients' own addresses for as long as they last.
    """

    name: str
    slices: tuple[Slice, ...]
    iifname: tuple[str, ...] = ()
    oifname: tuple[str, ...] = ()
    source: tuple[Network, ...] = ()
    destination: tuple[Network, ...] = ()
    mark: int | None = None
    spread: Spread = Spread.CLIENT
    exclude: tuple[Network, ...] = ()  # destinations never rewritten
    timestamps: Timestamps = Timestamps.KEEP
    exclude_source: tuple[Network, ...] = ()  # sources never rewritten
    waits_for: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class DnatRule:
    """Unsolicited packets to ports of a slice go to ``to``: the same port there, or ``to_port``."""

    name: str
    slice: Slice
    ranges: tuple[PortRange, ...]
    to: Address
    to_port: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole checked configuration. SNAT rules are in file order: the first match wins.

    ``draining`` are those of the slices that are being withdrawn: flows that have them go on, no new ones begin. No
    configuration says so; they are there while a withdrawal is under way. ``store`` is where pools are kept, None where
    nothing is said of it.
    """

    controller: Controller
    slices: tuple[Slice, ...]
    snat: tuple[SnatRule, ...] = ()
    dnat: tuple[DnatRule, ...] = ()
    draining: tuple[Slice, ...] = ()
    route: Route | None = None
    pools: Mapping[Pool, Demand] = field(default_factory=dict)
    store: StoreAddress | None = None
    inbound: Inbound | None = None
    proxies: tuple[Proxy, ...] = ()
