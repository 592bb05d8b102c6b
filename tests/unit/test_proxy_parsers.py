"""The relay's parsers over what clients send: whole, in pieces, and rubbish; and the headers that it writes."""

from __future__ import annotations

import base64
import socket
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nat_rewriter.proxy._core._native import ffi, lib

from nat_rewriter.model.proxies import Endpoint
from nat_rewriter.proxy.outcomes import MEANINGS, Outcome

STEPS = {"socks": lib.relay_socks_step, "connect": lib.relay_connect_step}
CREDENTIALS = [(b"", b""), (b"crawler", b"correct horse")]


def answer_to(kind: str, content: bytes, credentials: tuple[bytes, bytes] = CREDENTIALS[0]) -> tuple[int, Any, bytes]:
    """Take all steps that content allows; return the last step, its answer, and all replies."""
    answer, replies = ffi.new("struct relay_answer *"), b""
    while True:
        step = STEPS[kind](answer, ffi.from_buffer(content), len(content), *credentials)
        assert answer.used <= len(content)
        assert answer.reply_length <= 256
        replies += bytes(ffi.buffer(answer.reply)[: answer.reply_length])
        if step != lib.RELAY_NEXT:
            return step, answer, replies
        assert answer.used > 0
        content = content[answer.used :]


def host_of(answer: Any) -> str:
    return str(ffi.string(answer.host), "ascii")


def socks(kind: int, address: bytes, port: int = 443) -> bytes:
    return b"\x05\x02\x00\x02\x05\x01\x00" + bytes([kind]) + address + port.to_bytes(2, "big")


SOUND = [
    ("socks", socks(1, socket.inet_aton("203.0.113.1")), "203.0.113.1"),
    ("socks", socks(4, socket.inet_pton(socket.AF_INET6, "2001:db8::1")), "2001:db8::1"),
    ("socks", socks(3, b"\x0bexample.org"), "example.org"),
    ("connect", b"CONNECT 203.0.113.1:443 HTTP/1.1\r\n\r\n", "203.0.113.1"),
    ("connect", b"CONNECT [2001:db8::1]:443 HTTP/1.0\r\nHost: x\r\n\r\n", "2001:db8::1"),
    ("connect", b"CONNECT example.org:443 HTTP/1.1\r\nA: b\r\n\r\n", "example.org"),
]


@pytest.mark.parametrize(("kind", "content", "host"), SOUND)
def test_a_sound_request_is_understood_and_what_follows_is_left(kind: str, content: bytes, host: str) -> None:
    step, answer, _ = answer_to(kind, content + b"early")
    assert step == lib.RELAY_READY
    assert (host_of(answer), answer.port) == (host, 443)


@pytest.mark.parametrize(("kind", "content", "host"), SOUND)
def test_a_request_cut_anywhere_asks_for_more(kind: str, content: bytes, host: str) -> None:
    for length in range(len(content)):
        assert answer_to(kind, content[:length])[0] == lib.RELAY_MORE


@pytest.mark.parametrize("given_", [(b"crawler", b"correct horse"), (b"crawler", b"x"), (b"", b""), (b"crawle", b"r")])
def test_credentials(given_: tuple[bytes, bytes]) -> None:
    name, password = given_
    right = given_ == CREDENTIALS[1]
    spoken = b"\x01" + bytes([len(name)]) + name + bytes([len(password)]) + password
    request = b"\x05\x01\x02" + spoken + b"\x05\x01\x00\x01\xcb\x00\x71\x01\x01\xbb"
    step, answer, replies = answer_to("socks", request, CREDENTIALS[1])
    assert (step == lib.RELAY_READY, replies) == (right, b"\x05\x02\x01" + (b"\x00" if right else b"\x01"))
    header = b"Proxy-Authorization: basic " + base64.b64encode(name + b":" + password)
    step, answer, replies = answer_to("connect", b"CONNECT a:1 HTTP/1.1\r\n" + header + b"\r\n\r\n", CREDENTIALS[1])
    assert (step == lib.RELAY_READY, b" 407 " in replies) == (right, not right)
    assert right or answer.outcome == Outcome.NOT_AUTHORIZED


@given(st.sampled_from(sorted(STEPS)), st.binary(max_size=300), st.sampled_from(CREDENTIALS))
def test_rubbish_is_refused_with_words_or_asks_for_more(
    kind: str, content: bytes, credentials: tuple[bytes, bytes]
) -> None:
    step, answer, _ = answer_to(kind, content, credentials)
    if step == lib.RELAY_WRONG:
        assert Outcome(answer.outcome) in (Outcome.BAD_REQUEST, Outcome.NOT_AUTHORIZED)
    if step == lib.RELAY_READY:
        assert host_of(answer)
        assert host_of(answer).isprintable()
        assert 1 <= answer.port <= 65535


@given(st.sampled_from(SOUND), st.data())
def test_a_damaged_request_never_reads_past_its_end(sound: tuple[str, bytes, str], data: st.DataObject) -> None:
    kind, content, _ = sound
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    step, _, _ = answer_to(kind, bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    assert step in (lib.RELAY_MORE, lib.RELAY_READY, lib.RELAY_WRONG)


def test_the_largest_texts_fit() -> None:
    name = b"a" * 255
    step, answer, _ = answer_to("socks", socks(3, b"\xff" + name))
    assert (step, host_of(answer)) == (lib.RELAY_READY, name.decode())
    assert answer_to("connect", b"CONNECT " + name + b":1 HTTP/1.1\r\n\r\n")[0] == lib.RELAY_READY
    assert answer_to("connect", b"CONNECT a" + name + b":1 HTTP/1.1\r\n\r\n")[0] == lib.RELAY_WRONG
    most = (b"u" * 255, b"p" * 255)
    header = b"Proxy-Authorization: Basic " + base64.b64encode(b":".join(most))
    assert answer_to("connect", b"CONNECT a:1 HTTP/1.1\r\n" + header + b"\r\n\r\n", most)[0] == lib.RELAY_READY


def relay_address(endpoint: Endpoint) -> Any:
    address = ffi.new("struct relay_address *")
    address.family, address.port = endpoint.address.version, endpoint.port
    address.bytes = endpoint.address.packed.ljust(16, b"\0")
    return address


CLIENT_4, SERVER_4 = Endpoint(IPv4Address("10.0.0.2"), 40000), Endpoint(IPv4Address("203.0.113.1"), 443)
CLIENT_6, SERVER_6 = Endpoint(IPv6Address("2001:db8:10::2"), 40000), Endpoint(IPv6Address("2001:db8::1"), 443)


@pytest.mark.parametrize(
    ("version", "client", "server", "expected"),
    [
        (0, CLIENT_4, SERVER_4, b""),
        (1, CLIENT_4, SERVER_4, b"PROXY TCP4 10.0.0.2 203.0.113.1 40000 443\r\n"),
        (1, CLIENT_6, SERVER_6, b"PROXY TCP6 2001:db8:10::2 2001:db8::1 40000 443\r\n"),
        (2, CLIENT_4, SERVER_4, bytes.fromhex("0d0a0d0a000d0a515549540a 21 11 000c 0a000002 cb007101 9c40 01bb")),
        (
            2,
            CLIENT_6,
            SERVER_6,
            bytes.fromhex("0d0a0d0a000d0a515549540a 21 21 0024") + CLIENT_6.address.packed + SERVER_6.address.packed
            + bytes.fromhex("9c40 01bb"),
        ),
    ],
)  # fmt: skip
def test_the_proxy_header(version: int, client: Endpoint, server: Endpoint, expected: bytes) -> None:
    header = ffi.new("char[128]")
    length = lib.relay_proxy_header(header, version, relay_address(client), relay_address(server))
    assert bytes(ffi.buffer(header, length)) == expected


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_words(outcome: Outcome) -> None:
    reply = ffi.new("char[256]")
    assert MEANINGS[outcome]
    length = lib.relay_connect_reply(reply, outcome)
    text = bytes(ffi.buffer(reply, length))
    assert text.startswith(b"HTTP/1.1 ")
    assert text.endswith(b"\r\n\r\n")
    length = lib.relay_socks_reply(reply, outcome, ffi.NULL)
    assert bytes(ffi.buffer(reply, length))[0:1] == b"\x05"
    assert (reply[1] == b"\x00") == (outcome is Outcome.FINISHED)


def test_the_words_are_those_of_the_relay() -> None:
    assert len(Outcome) == lib.RELAY_OUTCOMES
    for outcome in Outcome:
        assert getattr(lib, f"RELAY_{outcome.name}") == outcome
