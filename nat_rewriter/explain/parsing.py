"""Tuples as an operator types them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nat_rewriter.config.values import Unexpected, host_address
from nat_rewriter.errors import UsageError
from nat_rewriter.model.slices import Address
from nat_rewriter.model.tuples import FlowTuple

FORMS = (
    "'tcp 198.51.100.10:9000 203.0.113.1:443'",
    "'udp [2001:db8::1]:9000 [2001:db8::2]:53'",
    "'tcp:198.51.100.10:9000->203.0.113.1:443'",
    "'icmp 198.51.100.10:77 203.0.113.1' (77: the echo id)",
)

_PROTOCOLS = {"tcp": "tcp", "udp": "udp", "icmp": "icmp", "icmpv6": "icmpv6", "ipv6-icmp": "icmpv6"}
_WHOLE = re.compile(
    r"\s*(?P<protocol>[A-Za-z][A-Za-z0-9-]*)(?:\s+|\s*:\s*)(?P<src>\S+?)(?:\s*->\s*|\s+)(?P<dst>\S+)\s*", re.ASCII
)
_END = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<v4>[^\[\]:]*))(?::(?P<number>[0-9]{1,5}))?", re.ASCII)


def parse_tuple(words: Iterable[str]) -> FlowTuple:
    """Return the tuple that the words of a command line mean, from one word or several.

    An echo id is given with the source and stands in the place of both ports. UsageError says what is expected.
    """
    text = " ".join(words)
    whole = _WHOLE.fullmatch(text)
    if whole is None:
        raise _refused("expected a protocol, a source and a destination", text)
    protocol = _PROTOCOLS.get(whole["protocol"].lower())
    if protocol is None:
        raise _refused(f"expected one of {', '.join(_PROTOCOLS)}", whole["protocol"])
    echo = protocol.startswith("icmp")
    src, sport = _source(whole["src"], echo)
    dst, dport = _destination(whole["dst"], echo)
    if src.version != dst.version:
        raise _refused("expected two addresses of one family", f"{src} {dst}")
    return FlowTuple(_protocol_of(protocol, src, whole["protocol"]), src, sport, dst, sport if echo else dport)


def _source(text: str, echo: bool) -> tuple[Address, int]:
    address, number = _end(text)
    if number is None:
        raise _refused("expected an echo id after the source" if echo else "expected a port after the source", text)
    return address, _checked(number, text, echo)


def _destination(text: str, echo: bool) -> tuple[Address, int]:
    address, number = _end(text)
    if echo:
        if number is not None:
            raise _refused("expected a destination without a port: the echo id belongs to the source", text)
        return address, 0
    if number is None:
        raise _refused("expected a port after the destination", text)
    return address, _checked(number, text, echo)


def _end(text: str) -> tuple[Address, str | None]:
    match = _END.fullmatch(text)
    bare_ipv6 = match is None and text.count(":") > 1 and "[" not in text
    try:
        address = host_address(text if bare_ipv6 or match is None else match["v6"] or match["v4"])
    except Unexpected as error:
        raise _refused(f"expected {error}", text) from None
    bracketed = match is not None and match["v6"] is not None
    if bracketed and address.version == 4:
        raise _refused("expected brackets around IPv6 addresses only", text)
    return address, match["number"] if match else None


def _checked(number: str, text: str, echo: bool) -> int:
    lowest, what = (0, "an echo id") if echo else (1, "a port")
    if not lowest <= int(number) <= 65535:
        raise _refused(f"expected {what} from {lowest} to 65535", text)
    return int(number)


def _protocol_of(protocol: str, src: Address, written: str) -> str:
    """Return the kernel's name: icmp stands for ICMPv6 between IPv6 addresses."""
    if protocol == "icmpv6" and src.version == 4:
        raise _refused("expected IPv6 addresses for this protocol", written)
    return "icmpv6" if protocol == "icmp" and src.version == 6 else protocol


def _refused(reason: str, value: str) -> UsageError:
    return UsageError("read tuple", f"{reason}, like {', '.join(FORMS[:-1])} or {FORMS[-1]}", value)
