"""The kernel's hash, to tell which of several ranges a packet is given.

``nft`` loads the fields of a concatenation into 32-bit registers, each field padded with zeros to whole registers, and
net/netfilter/nft_hash.c computes ``reciprocal_scale(jhash(registers, length, seed), modulus)``.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable
from typing import Literal

from nat_rewriter.model.tuples import FlowTuple

ByteOrder = Literal["little", "big"]

_MASK = 0xFFFFFFFF
_JHASH_INITVAL = 0xDEADBEEF  # include/linux/jhash.h
_EXPRESSION = re.compile(r"jhash (?P<fields>.+) mod (?P<count>[0-9]+) seed (?P<seed>0x[0-9a-f]+)")


def _port(number: int) -> bytes:
    return struct.pack("!H2x", number)


# What nft's fields hold in a register, in network order.
_FIELDS: dict[str, Callable[[FlowTuple], bytes]] = {
    **{f"{ip} saddr": lambda packet: packet.src.packed for ip in ("ip", "ip6")},
    **{f"{ip} daddr": lambda packet: packet.dst.packed for ip in ("ip", "ip6")},
    **{f"{icmp} id": lambda packet: _port(packet.sport) for icmp in ("icmp", "icmpv6")},
    "th sport": lambda packet: _port(packet.sport),
    "th dport": lambda packet: _port(packet.dport),
}


def number_of(expression: str, packet: FlowTuple, byteorder: ByteOrder = sys.byteorder) -> int | None:
    """Return what an nft expression ``jhash FIELDS mod N seed S`` is for a packet; None where chance decides."""
    match = _EXPRESSION.fullmatch(expression)
    if match is None:
        return None
    key = b"".join(_FIELDS[field](packet) for field in match["fields"].split(" . "))
    return reciprocal_scale(jhash(key, int(match["seed"], 16), byteorder), int(match["count"]))


def reciprocal_scale(value: int, count: int) -> int:
    """Return a 32-bit value scaled to 0 … count - 1: include/linux/math.h."""
    return value * count >> 32


def jhash(key: bytes, initval: int, byteorder: ByteOrder = sys.byteorder) -> int:
    """Return Jenkins' hash of some bytes as the kernel computes it: include/linux/jhash.h."""
    a = b = c = (_JHASH_INITVAL + len(key) + initval) & _MASK
    while len(key) > 12:
        a, b, c = ((one + int.from_bytes(key[at : at + 4], byteorder)) & _MASK for one, at in ((a, 0), (b, 4), (c, 8)))
        a, b, c = _mix(a, b, c)
        key = key[12:]
    if not key:
        return c
    # The last bytes are added one by one, lowest first, whatever the order of the machine.
    last = key.ljust(12, b"\0")
    a, b, c = ((one + int.from_bytes(last[at : at + 4], "little")) & _MASK for one, at in ((a, 0), (b, 4), (c, 8)))
    return _final(a, b, c)


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> (32 - bits)) & _MASK


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    a, c = (a - c & _MASK) ^ _rotated(c, 4), c + b & _MASK
    b, a = (b - a & _MASK) ^ _rotated(a, 6), a + c & _MASK
    c, b = (c - b & _MASK) ^ _rotated(b, 8), b + a & _MASK
    a, c = (a - c & _MASK) ^ _rotated(c, 16), c + b & _MASK
    b, a = (b - a & _MASK) ^ _rotated(a, 19), a + c & _MASK
    c, b = (c - b & _MASK) ^ _rotated(b, 4), b + a & _MASK
    return a, b, c


def _final(a: int, b: int, c: int) -> int:
    for bits_c, bits_a, bits_b in ((14, 11, 25), (16, 4, 14)):
        c = (c ^ b) - _rotated(b, bits_c) & _MASK
        a = (a ^ c) - _rotated(c, bits_a) & _MASK
        b = (b ^ a) - _rotated(a, bits_b) & _MASK
    return (c ^ b) - _rotated(b, 24) & _MASK
