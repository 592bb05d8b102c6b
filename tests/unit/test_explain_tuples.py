"""Tuples as they are typed, and the kernel's hash of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from explaining import ECHO, ECHO6, TCP, UDP6, flow_tuple

from nat_rewriter.errors import EXIT_USAGE, UsageError
from nat_rewriter.explain import parse_tuple
from nat_rewriter.explain.hashing import jhash, number_of, reciprocal_scale
from nat_rewriter.model.tuples import FlowTuple

FLOW = flow_tuple("udp", "10.0.0.2", 40000, "203.0.113.1", 53)
FLOW6 = flow_tuple("udp", "2001:db8:10::2", 40000, "2001:db8:203::1", 53)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tcp", "198.51.100.10:9000", "203.0.113.1:443"], TCP),
        (["tcp 198.51.100.10:9000 203.0.113.1:443"], TCP),
        (["  tcp   198.51.100.10:9000   203.0.113.1:443 "], TCP),
        (["TCP", "198.51.100.10:9000", "203.0.113.1:443"], TCP),
        (["tcp:198.51.100.10:9000->203.0.113.1:443"], TCP),
        (["tcp : 198.51.100.10:9000 -> 203.0.113.1:443"], TCP),
        (["tcp", "198.51.100.10:9000->203.0.113.1:443"], TCP),
        (["tcp", "198.51.100.10:9000", "->", "203.0.113.1:443"], TCP),
        (["udp [2001:db8::1]:9000 [2001:db8::2]:53"], UDP6),
        (["udp:[2001:DB8:0::1]:9000->[2001:db8::2]:53"], UDP6),
        (["icmp 198.51.100.10:77 203.0.113.1"], ECHO),
        (["icmp [2001:db8::1]:77 [2001:db8::2]"], ECHO6),
        (["icmp [2001:db8::1]:77 2001:db8::2"], ECHO6),
        (["icmpv6", "[2001:db8::1]:77", "2001:db8::2"], ECHO6),
        (["ipv6-icmp:[2001:db8::1]:77->2001:db8::2"], ECHO6),
        (["icmp 198.51.100.10:0 203.0.113.1"], replace(ECHO, sport=0, dport=0)),
    ],
)
def test_tuples_are_read(words: Sequence[str], expected: FlowTuple) -> None:
    assert parse_tuple(words) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a protocol, a source and a destination"),
        ("tcp", "a protocol, a source and a destination"),
        ("tcp 198.51.100.10:9000", "a protocol, a source and a destination"),
        ("198.51.100.10:9000 203.0.113.1:443", "a protocol, a source and a destination"),
        ("tcp 1.2.3.4:1 1.2.3.5:2 1.2.3.6:3", "a protocol, a source and a destination"),
        ("tcp->198.51.100.10:9000->203.0.113.1:443", "a protocol, a source and a destination"),
        ("sctp 198.51.100.10:9000 203.0.113.1:443", "one of tcp, udp"),
        ("6x 198.51.100.10:9000 203.0.113.1:443", "a protocol, a source and a destination"),
        ("tcp 198.51.100.10 203.0.113.1:443", "a port after the source"),
        ("tcp 198.51.100.10:9000 203.0.113.1", "a port after the destination"),
        ("tcp 198.51.100.10:0 203.0.113.1:443", "a port from 1 to 65535"),
        ("tcp 198.51.100.10:65536 203.0.113.1:443", "a port from 1 to 65535"),
        ("tcp 198.51.100.10:9000 203.0.113.1:99999", "a port from 1 to 65535"),
        ("tcp 198.51.100.10:900000 203.0.113.1:443", "198.51.100.10:900000"),
        ("tcp 198.51.100.10:-1 203.0.113.1:443", "198.51.100.10:-1"),
        ("tcp 198.51.100.10:http 203.0.113.1:443", "198.51.100.10:http"),
        ("tcp 198.51.100.10:٩٠٠٠ 203.0.113.1:443", "198.51.100.10"),
        ("tcp 198.51.100.256:9000 203.0.113.1:443", "an IPv4 or IPv6 address"),
        ("tcp 198.51.100.010:9000 203.0.113.1:443", "an IPv4 or IPv6 address"),
        ("tcp host.example:9000 203.0.113.1:443", "an IPv4 or IPv6 address"),
        ("tcp [198.51.100.10]:9000 203.0.113.1:443", "brackets around IPv6 addresses only"),
        ("tcp 2001:db8::1:9000 [2001:db8::2]:53", "a port after the source"),
        ("tcp [2001:db8::1:9000 [2001:db8::2]:53", "an IPv4 or IPv6 address"),
        ("tcp [2001:db8::1]9000 [2001:db8::2]:53", "an IPv4 or IPv6 address"),
        ("tcp [fe80::1%eth0]:9000 [2001:db8::2]:53", "an IPv4 or IPv6 address"),
        ("tcp [::ffff:198.51.100.10]:9000 [2001:db8::2]:53", "not IPv4-mapped"),
        ("tcp 127.0.0.1:9000 203.0.113.1:443", "not a loopback one"),
        ("udp 198.51.100.10:9000 224.0.0.1:53", "not a multicast one"),
        ("tcp 198.51.100.10:9000 [2001:db8::2]:53", "addresses of one family"),
        ("icmp 198.51.100.10 203.0.113.1", "an echo id after the source"),
        ("icmp 198.51.100.10:70000 203.0.113.1", "an echo id from 0 to 65535"),
        ("icmp 198.51.100.10:77 203.0.113.1:77", "a destination without a port"),
        ("icmpv6 198.51.100.10:77 203.0.113.1", "IPv6 addresses for this protocol"),
    ],
)
def test_what_is_no_tuple_is_refused_with_the_expected_forms(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_tuple(text.split())
    assert said in str(caught.value)
    assert "tcp 198.51.100.10:9000 203.0.113.1:443" in str(caught.value)
    assert caught.value.exit_code == EXIT_USAGE


# --- the hash


@pytest.mark.parametrize(
    ("key", "seed", "expected"),
    [
        (b"", 0, 0xDEADBEEF),
        (b"", 5, 0xDEADBEF4),
    ],
)
def test_the_hash_of_nothing_is_its_seed(key: bytes, seed: int, expected: int) -> None:
    assert jhash(key, seed, "little") == expected


@pytest.mark.parametrize(
    ("fields", "one", "expected"),
    [
        # What a little-endian kernel computed: read from `ct mark set jhash …`, for packets of a lab.
        ("ip saddr", FLOW, 0x82FA942E),
        ("ip saddr . th sport . ip daddr . th dport", FLOW, 0x0A0E7609),
        ("ip6 saddr", FLOW6, 0xFA194DF6),
        ("ip6 saddr . th sport . ip6 daddr . th dport", FLOW6, 0xAEF9DEB2),
    ],
)
def test_the_hash_is_that_of_the_kernel(fields: str, one: FlowTuple, expected: int) -> None:
    # This modulus leaves the hash as it is, less one.
    assert number_of(f"jhash {fields} mod 4294967295 seed 0xd3adc0de", one, "little") == expected


def test_the_hash_depends_on_the_order_of_bytes_only_in_whole_blocks() -> None:
    assert jhash(b"abcdefghijkl", 1, "little") == jhash(b"abcdefghijkl", 1, "big")
    assert jhash(b"abcdefghijklm", 1, "little") != jhash(b"abcdefghijklm", 1, "big")


def test_scaling_reaches_every_number() -> None:
    assert [reciprocal_scale(value, 4) for value in (0, 1 << 30, 1 << 31, 3 << 30, 0xFFFFFFFF)] == [0, 1, 2, 3, 3]


def test_chance_has_no_number() -> None:
    assert number_of("numgen random mod 3", TCP) is None


def test_ports_fill_whole_registers() -> None:
    expression = "jhash ip saddr . th sport . ip daddr . th dport mod 4294967295 seed 0x1"
    key = bytes([198, 51, 100, 10, 0x23, 0x28, 0, 0, 203, 0, 113, 1, 0x01, 0xBB, 0, 0])
    assert number_of(expression, TCP, "little") == reciprocal_scale(jhash(key, 1, "little"), 0xFFFFFFFF)
