"""Flows: conntrack entries, as packed records in bulk and as objects for what is shown."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from nat_rewriter.model.slices import Address
from nat_rewriter.model.tuples import FlowTuple, protocol_name

# One record as the C core packs it (struct nr_flow in kernel/_core/core.h), as numpy reads it. Addresses are two
# 64-bit halves of the number, high first (an IPv4 address is (0, number)); ports are in host order. ICMP: both
# "ports" of a tuple are the echo id, so that `reply_dport` is what is seen on the wire for every protocol.
FLOW_FIELDS: list[Any] = [
    ("key", "u8"),  # keyed hash of protocol, zone and original tuple: unique in a table
    ("orig_src", "u8", 2),
    ("orig_dst", "u8", 2),
    ("reply_src", "u8", 2),
    ("reply_dst", "u8", 2),
    ("packets", "u8", 2),
    ("bytes", "u8", 2),
    ("start_ns", "u8"),
    ("stop_ns", "u8"),
    ("orig_sport", "u2"),
    ("orig_dport", "u2"),
    ("reply_sport", "u2"),
    ("reply_dport", "u2"),
    ("status", "u4"),
    ("mark", "u4"),
    ("id", "u4"),
    ("timeout_s", "u4"),
    ("zone", "u2"),
    ("present", "u2"),  # bits of Present
    ("family", "u1"),  # 4 or 6
    ("protocol", "u1"),
    ("tcp_state", "u1"),
    ("event", "u1"),  # Event
    ("icmp_type", "u1"),
    ("icmp_code", "u1"),
    ("zone_direction", "u1"),  # ZoneDirection
    ("reserved", "u1"),
    ("reserved2", "u4"),
]


class Event(enum.IntEnum):
    """Why a record was received."""

    DUMP = 0
    NEW = 1
    UPDATE = 2
    DESTROY = 3


class ZoneDirection(enum.IntEnum):
    """Of which direction of an entry its zone is."""

    BOTH = 0
    ORIGINAL = 1
    REPLY = 2


class Present(enum.IntFlag):
    """Which optional attributes the kernel sent with an entry."""

    COUNTERS = 1
    TIMESTAMP = 2
    TIMEOUT = 4
    TCP_STATE = 8
    MARK = 16
    ZONE = 32
    ID = 64
    STATUS = 128


class Status(enum.IntFlag):
    """IPS_* bits: include/uapi/linux/netfilter/nf_conntrack_common.h."""

    EXPECTED = 1 << 0
    SEEN_REPLY = 1 << 1
    ASSURED = 1 << 2
    CONFIRMED = 1 << 3
    SRC_NAT = 1 << 4
    DST_NAT = 1 << 5
    SEQ_ADJUST = 1 << 6
    SRC_NAT_DONE = 1 << 7
    DST_NAT_DONE = 1 << 8
    DYING = 1 << 9
    FIXED_TIMEOUT = 1 << 10
    TEMPLATE = 1 << 11
    UNTRACKED = 1 << 12
    HELPER = 1 << 13
    OFFLOAD = 1 << 14
    HW_OFFLOAD = 1 << 15

    def names(self) -> list[str]:
        """Return the names of the set bits as `flows --json` spells them, lowest bit first."""
        return [bit.name.lower().replace("_", "-") for bit in Status if bit & self and bit.name]


# enum tcp_conntrack: include/uapi/linux/netfilter/nf_conntrack_tcp.h
TCP_STATES = (
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
)


class Origin(enum.Enum):
    """Where the first packet of a flow came from."""

    LOCAL = "local"
    FORWARDED = "forwarded"


@dataclass(frozen=True, slots=True)
class Flow:
    """One conntrack entry. Fields that the kernel did not send are None."""

    original: FlowTuple
    reply: FlowTuple
    status: Status
    id: int
    zone: int = 0
    mark: int = 0
    state: str | None = None
    timeout_s: int | None = None
    packets: tuple[int, int] | None = None
    bytes: tuple[int, int] | None = None
    start_ns: int | None = None
    icmp: tuple[int, int] | None = None  # type and code


ICMP_PROTOCOLS = frozenset({1, 58})


def address_from_halves(halves: Any, family: int) -> Address:
    """Return the address of a record's two 64-bit halves, high first."""
    number = int(halves[0]) << 64 | int(halves[1])
    return IPv4Address(number) if family == 4 else IPv6Address(number)


def flow_from_record(record: Any) -> Flow:
    """Return one packed record (fields of FLOW_FIELDS, by name) as an object; what the kernel did not send is None."""
    present = Present(int(record["present"]))
    return Flow(
        original=_tuple_of(record, "orig"),
        reply=_tuple_of(record, "reply"),
        status=Status(int(record["status"])),
        id=int(record["id"]),
        zone=int(record["zone"]),
        mark=int(record["mark"]),
        state=_tcp_state(int(record["tcp_state"])) if Present.TCP_STATE in present else None,
        timeout_s=int(record["timeout_s"]) if Present.TIMEOUT in present else None,
        packets=_pair(record["packets"]) if Present.COUNTERS in present else None,
        bytes=_pair(record["bytes"]) if Present.COUNTERS in present else None,
        start_ns=int(record["start_ns"]) if Present.TIMESTAMP in present else None,
        icmp=_icmp_of(record),
    )


def _tuple_of(record: Any, direction: str) -> FlowTuple:
    family = int(record["family"])
    return FlowTuple(
        protocol_name(int(record["protocol"])),
        address_from_halves(record[f"{direction}_src"], family),
        int(record[f"{direction}_sport"]),
        address_from_halves(record[f"{direction}_dst"], family),
        int(record[f"{direction}_dport"]),
    )


def _tcp_state(number: int) -> str:
    return TCP_STATES[number] if number < len(TCP_STATES) else str(number)


def _pair(values: Any) -> tuple[int, int]:
    return int(values[0]), int(values[1])


def _icmp_of(record: Any) -> tuple[int, int] | None:
    if int(record["protocol"]) not in ICMP_PROTOCOLS:
        return None
    return int(record["icmp_type"]), int(record["icmp_code"])
