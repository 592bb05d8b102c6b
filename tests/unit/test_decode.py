"""The C decoder on messages that the kernel wrote: whole, cut, and spoilt in every way that has a name."""

from __future__ import annotations

import contextlib
import struct

import pytest
from captured import NAMES, described, expected, message

from nat_rewriter.errors import DecodeError
from nat_rewriter.kernel import netlink
from nat_rewriter.kernel.conntrack import FLOW_DTYPE, decode
from nat_rewriter.kernel.sockets import SOCKET_DTYPE, decode_sockets

ffi, lib = netlink.ffi, netlink.lib
NEW = "event-new-tcp-ipv4-src-nat"
HEADER, FAMILY = 16, 4
MASK = (1 << 64) - 1


@pytest.mark.parametrize("name", NAMES)
def test_captured_messages_say_what_they_should(name: str) -> None:
    assert described(name, message(name)) == expected(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_message_cut_anywhere_is_an_error_or_has_fewer_records(name: str) -> None:
    data = message(name)
    whole = expected(name)["records"]
    for length in range(len(data)):
        try:
            found = described(name, data[:length])["records"]
        except DecodeError:
            continue
        assert found == whole[: len(found)]
        assert len(found) < max(len(whole), 1) or len(data) - length < 4  # padding of the last attribute


@pytest.mark.parametrize("name", NAMES)
def test_a_message_cut_anywhere_whose_length_says_so_never_crashes(name: str) -> None:
    data = message(name)
    for length in range(HEADER, len(data)):
        with contextlib.suppress(DecodeError):
            described(name, struct.pack("=I", length) + data[4:length])


@pytest.mark.parametrize("name", NAMES)
def test_a_spoilt_byte_never_crashes(name: str) -> None:
    data = message(name)
    for at in range(len(data)):
        for spoilt in (0, 1, 0x7F, 0xFF, data[at] ^ 4):
            try:
                described(name, data[:at] + bytes([spoilt]) + data[at + 1 :])
            except (DecodeError, ValueError):  # ValueError: an event or a bit that the test has no name for
                continue


def test_records_have_the_layout_of_the_c_structures() -> None:
    for structure, dtype in (("struct nr_flow", FLOW_DTYPE), ("struct nr_socket", SOCKET_DTYPE)):
        assert dtype.itemsize == ffi.sizeof(structure)
        assert dtype.names is not None
        for name in dtype.names:
            assert dtype.fields is not None
            assert dtype.fields[name][1] == ffi.offsetof(structure, name), name


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def entry(*attributes: bytes, family: int = 2, kind: int = 0x0100, flags: int = 0) -> bytes:
    payload = struct.pack("=BBH", family, 0, 0) + b"".join(attributes)
    return struct.pack("=IHHII", HEADER + len(payload), kind, flags, 0, 0) + payload


ADDRESSES = attribute(lib.CTA_TUPLE_IP, attribute(lib.CTA_IP_V4_SRC, b"abcd") + attribute(lib.CTA_IP_V4_DST, b"efgh"))
PORTS = attribute(lib.CTA_PROTO_SRC_PORT, b"\0\x01") + attribute(lib.CTA_PROTO_DST_PORT, b"\0\x02")
TCP = attribute(lib.CTA_TUPLE_PROTO, attribute(lib.CTA_PROTO_NUM, b"\x06") + PORTS)
ORIGINAL, REPLY = attribute(lib.CTA_TUPLE_ORIG, ADDRESSES + TCP), attribute(lib.CTA_TUPLE_REPLY, ADDRESSES + TCP)
ADDRESS6 = attribute(
    lib.CTA_TUPLE_IP, attribute(lib.CTA_IP_V6_SRC, bytes(16)) + attribute(lib.CTA_IP_V6_DST, bytes(16))
)

MALFORMED = {
    "fewer bytes than a message header": [bytes(15), entry(ORIGINAL, REPLY) + bytes(3)],
    "length of a message does not fit its datagram": [
        struct.pack("=IHHII", 15, 0x100, 0, 0, 0),
        struct.pack("=IHHII", 0, 0x100, 0, 0, 0),
        struct.pack("=IHHII", 17, 0x100, 0, 0, 0),
        struct.pack("=IHHII", 0xFFFFFFFF, 0x100, 0, 0, 0),
    ],
    "message without its address family header": [struct.pack("=IHHII", 19, 0x100, 0, 0, 0) + bytes(3)],
    "fewer bytes than an attribute header": [
        entry(ORIGINAL, REPLY, b"\x00" * 3),
        entry(attribute(lib.CTA_TUPLE_ORIG, b"\0\0"), REPLY),
    ],
    "length of an attribute does not fit what holds it": [
        entry(ORIGINAL, REPLY, struct.pack("=HH", 3, lib.CTA_MARK)),
        entry(ORIGINAL, REPLY, struct.pack("=HH", 0, lib.CTA_MARK)),
        entry(ORIGINAL, REPLY, struct.pack("=HH", 9, lib.CTA_MARK) + bytes(4)),
        entry(ORIGINAL, REPLY, struct.pack("=HH", 0xFFFF, lib.CTA_MARK) + bytes(4)),
        entry(attribute(lib.CTA_TUPLE_ORIG, struct.pack("=HH", 40, lib.CTA_TUPLE_IP) + bytes(4)), REPLY),
    ],
    "attribute of the wrong size for its type": [
        entry(ORIGINAL, REPLY, attribute(lib.CTA_MARK, bytes(5))),
        entry(ORIGINAL, REPLY, attribute(lib.CTA_STATUS, bytes(2))),
        entry(ORIGINAL, REPLY, attribute(lib.CTA_TIMEOUT, b"")),
        entry(ORIGINAL, REPLY, attribute(lib.CTA_ID, bytes(8))),
        entry(ORIGINAL, REPLY, attribute(lib.CTA_ZONE, bytes(4))),
        entry(ORIGINAL, REPLY, attribute(9, attribute(1, bytes(4)))),  # CTA_COUNTERS_PACKETS
        entry(ORIGINAL, REPLY, attribute(20, attribute(1, bytes(4)))),  # CTA_TIMESTAMP_START
        entry(
            ORIGINAL,
            REPLY,
            attribute(
                lib.CTA_PROTOINFO,
                attribute(lib.CTA_PROTOINFO_TCP, attribute(lib.CTA_PROTOINFO_TCP_STATE, bytes(2))),
            ),
        ),
        entry(
            attribute(lib.CTA_TUPLE_ORIG, attribute(lib.CTA_TUPLE_IP, attribute(lib.CTA_IP_V4_SRC, bytes(16)))), REPLY
        ),
        entry(attribute(lib.CTA_TUPLE_ORIG, attribute(lib.CTA_TUPLE_PROTO, attribute(lib.CTA_PROTO_NUM, bytes(2))))),
        entry(attribute(lib.CTA_TUPLE_ORIG, attribute(lib.CTA_TUPLE_PROTO, attribute(lib.CTA_PROTO_SRC_PORT, b"a")))),
    ],
    "entry without original and reply tuple": [entry(), entry(ORIGINAL), entry(REPLY)],
    "tuple without source and destination address": [
        entry(ORIGINAL, attribute(lib.CTA_TUPLE_REPLY, TCP)),
        entry(
            attribute(lib.CTA_TUPLE_ORIG, TCP + attribute(lib.CTA_TUPLE_IP, attribute(lib.CTA_IP_V4_SRC, b"abcd"))),
            REPLY,
        ),
    ],
    "tuple without protocol": [entry(attribute(lib.CTA_TUPLE_ORIG, ADDRESSES), REPLY)],
    "address of another family than its message": [
        entry(ORIGINAL, attribute(lib.CTA_TUPLE_REPLY, ADDRESS6 + TCP)),
        entry(ORIGINAL, REPLY, family=10),
    ],
    "answer without an error number": [
        struct.pack("=IHHII", 16, lib.NLMSG_ERROR, 0, 0, 0),
        struct.pack("=IHHIIH", 18, lib.NLMSG_DONE, 0, 0, 0, 0),
    ],
}


@pytest.mark.parametrize(
    ("words", "data"), [(words, data) for words, cases in MALFORMED.items() for data in cases], ids=str
)
def test_malformed_messages_are_named(words: str, data: bytes) -> None:
    with pytest.raises(DecodeError, match=f"decode conntrack messages: {words}, in the message at byte"):
        decode(data)


def test_a_short_socket_is_named() -> None:
    short = message("socket-tcp-ipv4-listen")[: HEADER + 40]
    with pytest.raises(DecodeError, match="decode sockets: fewer bytes than a socket, in the message at byte 0"):
        decode_sockets(struct.pack("=I", len(short)) + short[4:])


def test_the_place_of_what_is_wrong_is_told() -> None:
    good = entry(ORIGINAL, REPLY)
    with pytest.raises(DecodeError, match=f"in the message at byte {len(good)}$"):
        decode(good + entry(ORIGINAL))


def test_unknown_attributes_are_skipped_and_counted() -> None:
    decoded = decode(entry(ORIGINAL, attribute(0x3FFF, bytes(7)), REPLY, attribute(0x8000 | 77, b"")))
    assert len(decoded.records) == 1
    assert decoded.unknown_attributes == 2


def test_unknown_attributes_inside_of_known_ones_are_counted() -> None:
    original = attribute(lib.CTA_TUPLE_ORIG, ADDRESSES + TCP + attribute(99, bytes(3)))
    assert decode(entry(original, REPLY)).unknown_attributes == 1


def test_the_last_message_may_lack_its_padding() -> None:
    last = entry(ORIGINAL, REPLY, attribute(0x3FFF, b"a"))
    unpadded = struct.pack("=I", len(last) - 3) + last[4:-3]
    assert len(decode(entry(ORIGINAL, REPLY) + unpadded).records) == 2


@pytest.mark.parametrize(
    ("kind", "data", "expectation"),
    [
        (lib.NLMSG_DONE, b"", (True, 0)),
        (lib.NLMSG_DONE, struct.pack("=i", -22), (True, 22)),
        (lib.NLMSG_ERROR, struct.pack("=i", -2), (True, 2)),
        (lib.NLMSG_ERROR, struct.pack("=i", 0), (True, 0)),
        (lib.NLMSG_ERROR, struct.pack("=i", -(2**31)), (True, 0)),
        (1, b"", (False, 0)),  # NLMSG_NOOP
    ],
)
def test_messages_of_netlink_itself(kind: int, data: bytes, expectation: tuple[bool, int]) -> None:
    decoded = decode(struct.pack("=IHHII", HEADER + len(data), kind, 0, 0, 0) + data)
    assert (decoded.done, decoded.error) == expectation
    assert len(decoded.records) == 0


def test_nothing_after_the_end_of_a_dump_is_read() -> None:
    done = struct.pack("=IHHIIi", 20, lib.NLMSG_DONE, 0, 0, 0, 0)
    assert len(decode(done + entry(ORIGINAL, REPLY)).records) == 0


def test_an_overrun_is_told() -> None:
    decoded = decode(struct.pack("=IHHII", 16, 4, 0, 0, 0) + entry(ORIGINAL, REPLY))
    assert decoded.overrun
    assert len(decoded.records) == 1


def test_an_interrupted_dump_is_told() -> None:
    decoded = decode(entry(ORIGINAL, REPLY, flags=0x10))
    assert decoded.interrupted


@pytest.mark.parametrize("kind", [0x0200, 0x0105, 0x0A00, 0x0103])
def test_messages_of_others_are_skipped_and_counted(kind: int) -> None:
    decoded = decode(entry(b"rubbish!", kind=kind) + entry(ORIGINAL, REPLY))
    assert (len(decoded.records), decoded.foreign_messages) == (1, 1)


def test_entries_of_other_families_are_skipped_and_counted() -> None:
    decoded = decode(entry(ORIGINAL, REPLY, family=7) + entry(ORIGINAL, REPLY))
    assert (len(decoded.records), decoded.foreign_messages) == (1, 1)


def rounds(v: list[int], count: int) -> None:
    def rotate(value: int, bits: int) -> int:
        return (value << bits | value >> (64 - bits)) & MASK

    for _ in range(count):
        v[0] = (v[0] + v[1]) & MASK
        v[1] = rotate(v[1], 13) ^ v[0]
        v[0] = rotate(v[0], 32)
        v[2] = (v[2] + v[3]) & MASK
        v[3] = rotate(v[3], 16) ^ v[2]
        v[0] = (v[0] + v[3]) & MASK
        v[3] = rotate(v[3], 21) ^ v[0]
        v[2] = (v[2] + v[1]) & MASK
        v[1] = rotate(v[1], 17) ^ v[2]
        v[2] = rotate(v[2], 32)


def siphash(seed: tuple[int, int], words: list[int]) -> int:
    """SipHash-1-3 as the paper has it."""
    v = [a ^ b for a, b in zip(seed * 2, struct.unpack("!4Q", b"somepseudorandomlygeneratedbytes"), strict=True)]
    for word in [*words, len(words) * 8 << 56]:
        v[3] ^= word
        rounds(v, 1)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(v, 3)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def test_keys_are_siphash_of_what_tells_entries_apart() -> None:
    record = decode(message("dump-udp-ipv4-zone-both"), seed=(11, 22)).records[0]
    sport, dport, zone, protocol = (int(record[name]) for name in ("orig_sport", "orig_dport", "zone", "protocol"))
    words = [0, int(record["orig_src"][1]), 0, int(record["orig_dst"][1])]
    words += [sport << 48 | dport << 32 | zone << 16 | protocol << 8 | 4, 0]
    assert int(record["key"]) == siphash((11, 22), words)


def key(data: bytes, seed: tuple[int, int] = (1, 2)) -> int:
    return int(decode(data, events=True, seed=seed).records[0]["key"])


def test_the_key_of_an_entry_is_the_same_in_all_its_events() -> None:
    names = [NEW, "event-update-tcp-ipv4", "event-destroy-tcp-ipv4"]
    assert len({key(message(name)) for name in names}) == 1


def test_the_key_depends_on_tuple_zone_and_seed() -> None:
    icmp = lib.CTA_PROTO_ICMP_TYPE, lib.CTA_PROTO_ICMP_CODE

    def echo(kind: int) -> bytes:
        parts = attribute(lib.CTA_PROTO_NUM, b"\x01") + attribute(icmp[0], bytes([kind])) + attribute(icmp[1], b"\0")
        return attribute(lib.CTA_TUPLE_ORIG, ADDRESSES + attribute(lib.CTA_TUPLE_PROTO, parts))

    swapped = attribute(lib.CTA_TUPLE_IP, attribute(lib.CTA_IP_V4_SRC, b"efgh") + attribute(lib.CTA_IP_V4_DST, b"abcd"))
    different = [
        key(entry(ORIGINAL, REPLY)),
        key(entry(ORIGINAL, REPLY), seed=(1, 3)),
        key(entry(ORIGINAL, REPLY, attribute(lib.CTA_ZONE, b"\0\x05"))),
        key(entry(attribute(lib.CTA_TUPLE_ORIG, ADDRESSES + TCP + attribute(3, b"\0\x05")), REPLY)),  # CTA_TUPLE_ZONE
        key(entry(attribute(lib.CTA_TUPLE_ORIG, swapped + TCP), REPLY)),
        key(entry(echo(8), REPLY)),
        key(entry(echo(13), REPLY)),
    ]
    assert len(set(different)) == len(different)
