"""ctnetlink requests as bytes: tuples, filters, and entries to create. Nothing here touches a socket.

What the kernel reads: ctnetlink_nfqueue_ct_policy and ctnetlink_alloc_filter() in nf_conntrack_netlink.c.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from nat_rewriter.kernel._core._native import lib
from nat_rewriter.kernel.netlink import attribute, message, nested
from nat_rewriter.model.flows import Status
from nat_rewriter.model.slices import Address
from nat_rewriter.model.tuples import PROTOCOL_NAMES, FlowTuple

PROTOCOL_NUMBERS = {name: number for number, name in PROTOCOL_NAMES.items()}
PORT_PROTOCOLS = frozenset({"tcp", "udp", "dccp", "sctp", "udplite", "gre"})
FAMILY_HEADER = 4  # struct nfgenmsg
# ICMP: attributes of id, type and code; the types of an echo request and of its reply.
_ICMP = {
    "icmp": ((lib.CTA_PROTO_ICMP_ID, lib.CTA_PROTO_ICMP_TYPE, lib.CTA_PROTO_ICMP_CODE), (8, 0)),
    "icmpv6": ((lib.CTA_PROTO_ICMPV6_ID, lib.CTA_PROTO_ICMPV6_TYPE, lib.CTA_PROTO_ICMPV6_CODE), (128, 129)),
}
# CTA_FILTER_FLAG() of net/netfilter/nf_internals.h: which parts of a tuple a dump compares. Not in the uapi headers;
# libnetfilter_conntrack carries the same copy.
_FLAG_SRC, _FLAG_DST, _FLAG_PROTOCOL, _FLAG_SPORT, _FLAG_DPORT = 1 << 0, 1 << 1, 1 << 3, 1 << 4, 1 << 5
_FLAG_ICMP_ID = {"icmp": 1 << 8, "icmpv6": 1 << 11}


@dataclass(frozen=True, slots=True)
class TupleFilter:
    """The parts of a tuple that an entry must have; None does not matter. ICMP: ``sport`` is the echo id."""

    src: Address | None = None
    sport: int | None = None
    dst: Address | None = None
    dport: int | None = None

    @property
    def address(self) -> Address | None:
        """One of its addresses, which tells the family."""
        return self.src if self.src is not None else self.dst


@dataclass(frozen=True, slots=True)
class FlowFilter:
    """Which entries a dump returns: all that is given must hold.

    ``mark`` and ``status`` are compared under their masks; with no mask, the bits of ``status`` must be set and the
    mark must be equal. ``protocol`` is the kernel's name.
    """

    family: int | None = None
    protocol: str | None = None
    zone: int | None = None
    mark: int | None = None
    mark_mask: int = 0xFFFFFFFF
    status: Status | None = None
    status_mask: Status | None = None
    original: TupleFilter = TupleFilter()
    reply: TupleFilter = TupleFilter()

    @property
    def wanted_family(self) -> int | None:
        """The family that is asked for, or that an address implies."""
        for part in (self.original.address, self.reply.address):
            if part is not None:
                return part.version
        return self.family

    @property
    def wanted_status_mask(self) -> Status:
        """The status bits that matter."""
        if self.status is None:
            return Status(0)
        return self.status if self.status_mask is None else self.status_mask


def conntrack_message(operation: int, flags: int, family: int | None, *attributes: bytes) -> bytes:
    """Return a ctnetlink request; ``family`` 4, 6 or None for both."""
    number = {None: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}[family]
    header = struct.pack("=BBH", number, 0, 0)  # struct nfgenmsg
    return message(lib.NFNL_SUBSYS_CTNETLINK << 8 | operation, flags, header + b"".join(attributes))


def u32_attribute(kind: int, value: int) -> bytes:
    """Return an attribute of a 32-bit number in network order."""
    return attribute(kind, struct.pack("!I", value))


def u16_attribute(kind: int, value: int) -> bytes:
    """Return an attribute of a 16-bit number in network order."""
    return attribute(kind, struct.pack("!H", value))


def zone_attributes(zone: int) -> tuple[bytes, ...]:
    """Return the attribute of a zone; the default zone, 0, has none."""
    return (u16_attribute(lib.CTA_ZONE, zone),) if zone else ()


def tuple_attribute(kind: int, wanted: FlowTuple, *, is_reply: bool = False) -> bytes:
    """Return a whole tuple, for get, delete and insert. ICMP is an echo request, or its reply."""
    return nested(
        kind,
        _addresses(wanted.src, wanted.dst),
        nested(lib.CTA_TUPLE_PROTO, *_protocol(wanted.protocol), *_ends(wanted, is_reply)),
    )


def _addresses(src: Address | None, dst: Address | None) -> bytes:
    parts = []
    if src is not None:
        parts.append(attribute(lib.CTA_IP_V4_SRC if src.version == 4 else lib.CTA_IP_V6_SRC, src.packed))
    if dst is not None:
        parts.append(attribute(lib.CTA_IP_V4_DST if dst.version == 4 else lib.CTA_IP_V6_DST, dst.packed))
    return nested(lib.CTA_TUPLE_IP, *parts)


def protocol_number(name: str) -> int:
    """Return the IP protocol number of the kernel's name, or of a number as text."""
    return PROTOCOL_NUMBERS[name] if name in PROTOCOL_NUMBERS else int(name)


def _protocol(protocol: str) -> tuple[bytes, ...]:
    return (attribute(lib.CTA_PROTO_NUM, bytes([protocol_number(protocol)])),)


def _ends(wanted: FlowTuple, is_reply: bool) -> tuple[bytes, ...]:
    if wanted.protocol in PORT_PROTOCOLS:
        return (
            u16_attribute(lib.CTA_PROTO_SRC_PORT, wanted.sport),
            u16_attribute(lib.CTA_PROTO_DST_PORT, wanted.dport),
        )
    if wanted.protocol not in _ICMP:
        return ()
    (id_kind, type_kind, code_kind), types = _ICMP[wanted.protocol]
    echo = attribute(type_kind, bytes([types[is_reply]])), attribute(code_kind, b"\0")
    return (u16_attribute(id_kind, wanted.sport), *echo)


def filter_attributes(wanted: FlowFilter) -> list[bytes]:
    """Return the attributes that make the kernel filter a dump; parts that it cannot compare are left out."""
    parts: list[bytes] = []
    if wanted.mark is not None:
        parts += [
            u32_attribute(lib.CTA_MARK, wanted.mark & wanted.mark_mask),
            u32_attribute(lib.CTA_MARK_MASK, wanted.mark_mask),
        ]
    # A mask of zero is refused, and says nothing.
    if wanted.status is not None and wanted.wanted_status_mask:
        parts += [
            u32_attribute(lib.CTA_STATUS, wanted.status & wanted.wanted_status_mask),
            u32_attribute(lib.CTA_STATUS_MASK, wanted.wanted_status_mask),
        ]
    if wanted.zone is not None:
        parts.append(u16_attribute(lib.CTA_ZONE, wanted.zone))
    # The kernel compares tuples within one family only.
    if wanted.wanted_family is not None:
        parts += _tuple_filters(wanted)
    return parts


def _tuple_filters(wanted: FlowFilter) -> list[bytes]:
    original_flags, original = _tuple_filter(lib.CTA_TUPLE_ORIG, wanted.original, wanted.protocol)
    reply_flags, reply = _tuple_filter(lib.CTA_TUPLE_REPLY, wanted.reply, None)
    if not original_flags | reply_flags:
        return []
    flags = nested(
        lib.CTA_FILTER,
        attribute(lib.CTA_FILTER_ORIG_FLAGS, struct.pack("=I", original_flags)),
        attribute(lib.CTA_FILTER_REPLY_FLAGS, struct.pack("=I", reply_flags)),
    )
    return [flags] + [part for part, used in ((original, original_flags), (reply, reply_flags)) if used]


def _tuple_filter(kind: int, wanted: TupleFilter, protocol: str | None) -> tuple[int, bytes]:
    """Return which parts of a tuple are to be compared, and the tuple."""
    flags, parts = 0, []
    # IPv6 addresses are left out: ctnetlink_filter_match_tuple() keeps the entries that do not have them (Linux 5.8 to
    # at least 6.18 take the result of ipv6_addr_cmp() for its opposite).
    if wanted.address is not None and wanted.address.version == 4:
        flags |= (wanted.src is not None) * _FLAG_SRC | (wanted.dst is not None) * _FLAG_DST
        parts.append(_addresses(wanted.src, wanted.dst))
    if protocol is not None:
        end_flags, ends = _end_filter(wanted, protocol)
        flags |= _FLAG_PROTOCOL | end_flags
        parts.append(nested(lib.CTA_TUPLE_PROTO, *_protocol(protocol), *ends))
    return flags, nested(kind, *parts)


def _end_filter(wanted: TupleFilter, protocol: str) -> tuple[int, list[bytes]]:
    flags, ends = 0, []
    if protocol in PORT_PROTOCOLS:
        for port, flag, kind in (
            (wanted.sport, _FLAG_SPORT, lib.CTA_PROTO_SRC_PORT),
            (wanted.dport, _FLAG_DPORT, lib.CTA_PROTO_DST_PORT),
        ):
            if port is not None:
                flags |= flag
                ends.append(u16_attribute(kind, port))
    elif protocol in _ICMP and wanted.sport is not None:
        flags |= _FLAG_ICMP_ID[protocol]
        ends.append(u16_attribute(_ICMP[protocol][0][0], wanted.sport))
    return flags, ends


def source_nat_attribute(address: Address, port: int) -> bytes:
    """Return the source translation of an entry to be created: to exactly this address and port (or echo id)."""
    return _nat_attribute(lib.CTA_NAT_SRC, address, port)


def destination_nat_attribute(address: Address, port: int) -> bytes:
    """Return the destination translation of an entry to be created: to exactly this address and port."""
    return _nat_attribute(lib.CTA_NAT_DST, address, port)


def _nat_attribute(kind: int, address: Address, port: int) -> bytes:
    ipv4 = isinstance(address, IPv4Address)
    first, last = (lib.CTA_NAT_V4_MINIP, lib.CTA_NAT_V4_MAXIP) if ipv4 else (lib.CTA_NAT_V6_MINIP, lib.CTA_NAT_V6_MAXIP)
    return nested(
        kind,
        attribute(first, address.packed),
        attribute(last, address.packed),
        nested(
            lib.CTA_NAT_PROTO,
            u16_attribute(lib.CTA_PROTONAT_PORT_MIN, port),
            u16_attribute(lib.CTA_PROTONAT_PORT_MAX, port),
        ),
    )
