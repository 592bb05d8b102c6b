"""What reads bytes that nobody vouches for, on bytes spoilt in a great many ways: the C decoder, and the handshakes."""

from __future__ import annotations

import base64
from pathlib import Path

from fuzzing import HERE, ROOT, Target, has_clang, needs_gcc

DECODER = Target(
    "decode.c", ROOT / "nat_rewriter" / "kernel" / "_core", ("decode.c", "flows.c", "filter.c", "sockets.c")
)
HANDSHAKE = Target(
    "handshake.c",
    ROOT / "nat_rewriter" / "proxy" / "_core",
    ("socks.c", "http.c", "handshake.c", "proxy_header.c"),
    ["-Wl,--wrap=recv"],
)


def captured_messages() -> dict[str, bytes]:
    """Netlink messages as the kernel sent them."""
    found = {}
    for source in (HERE.parent / "unit" / "messages").glob("*.hex"):
        lines = [line for line in source.read_text(encoding="ascii").splitlines() if not line.startswith("#")]
        found[source.stem] = bytes.fromhex("".join(lines))
    return found


def sound_requests() -> dict[str, bytes]:
    """What clients of the proxy say, behind the four bytes that say how handshake.c is to take it."""
    socks, by_name, ipv6 = (
        b"\x05\x01\x00\x05\x01\x00",
        b"\x03\x0bexample.org\x01\xbb",
        b"\x04" + bytes(16) + b"\x01\xbb",
    )
    password = b"\x05\x01\x02\x01\x07crawler\x0dcorrect horse\x05\x01\x00\x01\xcb\x00\x71\x01\x01\xbb"
    credentials = base64.b64encode(b"crawler:correct horse")
    return {
        "socks-name": b"\x00\x00\x03\x01" + socks + by_name + b"early",
        "socks-ipv6": b"\x00\x01\x07\x01" + socks + ipv6,
        "socks-password": b"\x02\x02\x05\x01" + password,
        "socks-longest": b"\x04\x00\x3f\x01\x05\x01\x02\x01\xff" + b"u" * 255 + b"\xff" + b"p" * 255,
        "connect": b"\x01\x00\x09\x01CONNECT 203.0.113.1:443 HTTP/1.1\r\n\r\nearly",
        "connect-ipv6": b"\x01\x01\x09\x01CONNECT [2001:db8::1]:443 HTTP/1.0\r\nHost: x\r\n\r\n",
        "connect-password": b"\x03\x02\x09\x01CONNECT example.org:443 HTTP/1.1\r\nProxy-Authorization: Basic "
        + credentials + b"\r\n\r\n",
    }  # fmt: skip


@needs_gcc
def test_spoilt_messages_give_records_or_a_problem(tmp_path: Path) -> None:
    DECODER.mutate(tmp_path, captured_messages())


@needs_gcc
def test_spoilt_requests_end_in_one_way_however_they_come(tmp_path: Path) -> None:
    HANDSHAKE.mutate(tmp_path, sound_requests())


if has_clang:

    def test_libfuzzer_finds_nothing_in_the_decoder(tmp_path: Path) -> None:
        DECODER.search(tmp_path, captured_messages())

    def test_libfuzzer_finds_nothing_in_the_handshakes(tmp_path: Path) -> None:
        HANDSHAKE.search(tmp_path, sound_requests())
