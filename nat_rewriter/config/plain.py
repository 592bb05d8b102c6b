"""Slices and rules of the plainest form, read at once, because there may be ten thousand of them.

What is read here is exactly what ``slices.py`` and ``snat.py`` would read. Whatever is less plain, or wrong, they read.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Network
from itertools import pairwise

from nat_rewriter.config import values
from nat_rewriter.model.policy import Network, SnatRule
from nat_rewriter.model.slices import Address, PortRange, Protocol, Slice

_SLICE_KEYS = frozenset({"name", "address", "ports", "protocols"})
_RULE_KEYS = frozenset({"name", "source", "slices", "iifname"})
_USUAL = (Protocol.TCP, Protocol.UDP)


def plain_slice(content: Mapping[str, object]) -> Slice | None:
    """Return a slice of one range of ports, None where there is more to it."""
    name, address, ports = content.get("name"), content.get("address"), _only(content.get("ports"))
    if not content.keys() <= _SLICE_KEYS or ports is None or not (isinstance(name, str) and isinstance(address, str)):
        return None
    host, owned = _address(address), _ports(ports)
    protocols = _protocols(tuple(_texts(content["protocols"]))) if "protocols" in content else _USUAL
    if host is None or owned is None or not protocols or not values.NAME.fullmatch(name):
        return None
    return Slice(name, host, (owned,), protocols)


def plain_rule(content: Mapping[str, object], slices: Mapping[str, Slice | None]) -> SnatRule | None:
    """Return a rule for one source and one slice, None where there is more to it."""
    name, chosen, source = content.get("name"), _only(content.get("slices")), _only(content.get("source"))
    if not content.keys() <= _RULE_KEYS or not isinstance(name, str) or chosen is None or source is None:
        return None
    owned, network = slices.get(chosen), _network(source)
    interfaces = _interfaces(content["iifname"]) if "iifname" in content else ()
    if owned is None or network is None or interfaces is None or not values.NAME.fullmatch(name):
        return None
    if network.version != owned.address.version:
        return None
    return SnatRule(name, (owned,), interfaces, source=(network,))


def share_ports(slices: Sequence[Slice]) -> bool:
    """Tell whether two slices may have a port of one address in common, whatever their protocols."""
    spans = sorted(
        (owned.address.version, int(owned.address), ports.first, ports.last)
        for owned in slices
        for ports in owned.ranges
    )
    return any(later[2] <= earlier[3] and later[:2] == earlier[:2] for earlier, later in pairwise(spans))


def _only(value: object) -> str | None:
    """Return the one text in a list of one."""
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str) else None


def _texts(value: object) -> Sequence[str]:
    return value if isinstance(value, list) and all(isinstance(one, str) for one in value) else ()


def _ports(text: str) -> PortRange | None:
    match = values.PORT_RANGE.fullmatch(text)
    if match is None:
        return None
    first, last = int(match[1]), int(match[2] or match[1])
    return PortRange(first, last) if 1 <= first <= last <= 65535 else None


@lru_cache(maxsize=1 << 17)
def _address(text: str) -> Address | None:
    try:
        return values.host_address(text)
    except values.Unexpected:
        return None


def _network(text: str) -> Network | None:
    if "/" not in text and ":" not in text:
        try:
            return IPv4Network((int.from_bytes(socket.inet_pton(socket.AF_INET, text)), 32))
        except (OSError, ValueError):  # ValueError: a NUL in it
            return None
    try:
        return values.network(text)
    except values.Unexpected:
        return None


def _interfaces(value: object) -> tuple[str, ...] | None:
    if not isinstance(value, str):
        return None
    try:
        return (values.interface(value),)
    except values.Unexpected:
        return None


@lru_cache
def _protocols(words: tuple[str, ...]) -> tuple[Protocol, ...]:
    """Return the protocols in the order of a slice; none where a word is unknown or comes twice."""
    known = {protocol.value for protocol in Protocol}
    if len(set(words)) != len(words) or not known.issuperset(words):
        return ()
    return tuple(protocol for protocol in Protocol if protocol.value in words)
