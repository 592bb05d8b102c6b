"""``[[proxy]]``: where TCP is taken in, and from which slices it goes on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_address

from nat_rewriter.config import values
from nat_rewriter.config.ports import read_ranges
from nat_rewriter.config.section import Section, refuse_repeated_names, suggestion
from nat_rewriter.config.slices import SlicesByName
from nat_rewriter.config.snat import merge_networks
from nat_rewriter.config.values import Unexpected
from nat_rewriter.model.policy import Coexist
from nat_rewriter.model.proxies import (
    USUAL_CONNECT_S,
    USUAL_CONNECTIONS,
    USUAL_IDLE_S,
    Endpoint,
    Proxy,
    ProxyMode,
    ProxyProtocol,
    Upstream,
)
from nat_rewriter.model.slices import Protocol, Slice

MOST_CONNECTIONS = 1_000_000
LONGEST_IDLE_S = 7 * 86400
LONGEST_CONNECT_S = 300
ONLY_INTERCEPTING = ("iifname", "source", "destination", "ports")
_ENDPOINT = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^\[\]:]+)):(?P<port>[0-9]{1,5})")
_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?(?:\.[A-Za-z0-9_-]+)*\.?")


def listen_endpoint(value: object) -> Endpoint:
    """Return an address of this host, or the one that stands for all of a family, and a port."""
    form = 'an address and a port of this host, e.g. "127.0.0.1:3128", "0.0.0.0:3128" or "[::1]:3128"'
    match = _ENDPOINT.fullmatch(value) if isinstance(value, str) else None
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise Unexpected(form)
    try:
        address = ip_address(match["v6"] or match["host"])
    except ValueError:
        raise Unexpected(form) from None
    if (address.version == 6) != bool(match["v6"]) or address.is_multicast:
        raise Unexpected(form)
    if address.version == 6 and (address.ipv4_mapped is not None or address.is_link_local):
        raise Unexpected(f"{form}, neither IPv4-mapped nor link-local")
    return Endpoint(address, int(match["port"]))


def upstream(value: object) -> Upstream:
    """Return a host, by name or address, and a port."""
    match = _ENDPOINT.fullmatch(value) if isinstance(value, str) else None
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise Unexpected('a host and a port, e.g. "203.0.113.1:443", "[2001:db8::1]:443" or "www.example.org:443"')
    host = match["v6"] or match["host"]
    if match["v6"] or re.fullmatch(r"[0-9.]+", host):
        try:
            host = str(ip_address(host))
        except ValueError:
            raise Unexpected('a sound address or the name of a host before the port, e.g. "203.0.113.1:443"') from None
    elif not _HOST.fullmatch(host):
        raise Unexpected('the name of a host before the port, e.g. "www.example.org:443"')
    return Upstream(host, int(match["port"]))


def credential(value: object) -> str:
    """Return a user's name or password: RFC 1929 carries 1 to 255 bytes of each."""
    if not isinstance(value, str) or not 1 <= len(value.encode()) <= 255 or not value.isprintable():
        raise Unexpected("1 to 255 printable characters in quotes")
    return value


def username(value: object) -> str:
    """Return a user's name, which RFC 7617 wants without a colon."""
    if ":" in credential(value):
        raise Unexpected("a name without a colon")
    return credential(value)


def read_proxies(root: Section, slices: SlicesByName, coexist: Coexist) -> list[Proxy]:
    """Return the sound proxies of a file, in its order."""
    read = [_read_proxy(section, slices, coexist) for section in root.tables("proxy")]
    refuse_repeated_names((section, name) for section, name, _ in read)
    placed = [(section, proxy) for section, _, proxy in read if proxy]
    _refuse_shared_endpoints(placed)
    return [proxy for _, proxy in placed]


def _read_proxy(
    section: Section, slices: SlicesByName, coexist: Coexist
) -> tuple[Section, str | None, Proxy | None]:  # fmt: skip
    name = section.required("name", values.name)
    mode = section.required("mode", values.choice(ProxyMode))
    listen = tuple(section.distinct("listen", listen_endpoint, single=True).values())
    if not section.has("listen"):
        section.refuse("listen", 'where to listen, e.g. "127.0.0.1:3128"')
    proxy = Proxy(
        name=name or "",
        mode=mode or ProxyMode.LISTEN,
        listen=listen,
        slices=_read_slices(section, slices, coexist),
        to=section.one("to", upstream, None),
        iifname=tuple(section.distinct("iifname", values.interface, single=True).values()),
        source=merge_networks(section.many("source", values.network, single=True).values()),
        destination=merge_networks(section.many("destination", values.network, single=True).values()),
        ports=read_ranges(section, "ports"),
        proxy_protocol=section.one("proxy_protocol", values.choice(ProxyProtocol), ProxyProtocol.OFF),
        max_connections=section.one("max_connections", values.integer(1, MOST_CONNECTIONS, 10000), USUAL_CONNECTIONS),
        idle_timeout_s=section.one("idle_timeout", values.integer(1, LONGEST_IDLE_S, 3600), USUAL_IDLE_S),
        connect_timeout_s=section.one("connect_timeout", values.integer(1, LONGEST_CONNECT_S, 10), USUAL_CONNECT_S),
        username=section.one("username", username, ""),
        password=section.one("password", credential, ""),
    )
    section.refuse_unknown()
    if mode is not None:
        _refuse_contradictions(section, proxy)
    return section, name, proxy if section.clean else None


def _read_slices(section: Section, slices: SlicesByName, coexist: Coexist) -> tuple[Slice, ...]:
    """Return the slices of a proxy; none at all when one of them is unknown or faulty."""
    names = section.distinct("slices", values.text)
    if not section.has("slices"):
        section.refuse("slices", 'the names of one or more slices, e.g. ["ams-1"]')
    for index, name in names.items():
        owned = slices.get(name)
        if name not in slices:
            section.refuse("slices", f"the name of a [[slice]]{suggestion(name, slices)}", index)
        elif owned and Protocol.TCP not in owned.protocols:
            section.refuse("slices", "a slice with tcp among its protocols", index)
        elif owned and coexist is Coexist.SPLIT and not owned.socket_ranges:
            section.refuse("slices", 'a slice with socket_ports: with coexist = "split" a proxy has only those', index)
    found = [slices.get(name) for name in names.values()]
    sound = section.sound("slices") and all(found)
    return tuple(owned for owned in found if owned) if sound else ()


def _refuse_contradictions(section: Section, proxy: Proxy) -> None:
    mode = proxy.mode
    if mode is ProxyMode.LISTEN and not section.has("to"):
        section.refuse("to", 'where connections go, e.g. "203.0.113.1:443"')
    if mode is not ProxyMode.LISTEN and section.has("to"):
        section.refuse("to", 'mode = "listen" beside it, or no such key')
    for key in ("username", "password"):
        if section.has(key) and not mode.is_asked:
            section.refuse(key, 'mode = "socks" or "connect" beside it, or no such key')
    if section.has("username") != section.has("password"):
        section.refuse("password" if section.has("username") else "username", "both username and password, or neither")
    for key in ONLY_INTERCEPTING:
        if section.has(key) and not mode.intercepts:
            section.refuse(key, 'mode = "redirect" or "tproxy" beside it, or no such key')
    if mode.intercepts:
        _refuse_unmatched(section, proxy)


def _refuse_unmatched(section: Section, proxy: Proxy) -> None:
    """Report what packets that are led here could never match, or have no slice to leave from."""
    if not section.has("iifname") and not section.has("source"):
        section.refuse("iifname", "at least one of iifname, source: this proxy would take every connection")
    owned = {each.address.version for each in proxy.slices}
    for index, endpoint in enumerate(proxy.listen):
        if proxy.mode is ProxyMode.REDIRECT and endpoint.address.is_loopback:
            section.refuse("listen", "an address that packets from elsewhere can be sent to, not loopback", index)
        if owned and endpoint.address.version not in owned:
            section.refuse("listen", f"an IPv{min(owned)} address, the family of the slices", index)
    listening = {endpoint.address.version for endpoint in proxy.listen}
    for key, networks in (("source", proxy.source), ("destination", proxy.destination)):
        if networks and listening and not {network.version for network in networks} & listening:
            section.refuse(key, f"a network of IPv{min(listening)}, the family that is listened on")


def _refuse_shared_endpoints(placed: Sequence[tuple[Section, Proxy]]) -> None:
    """Report each endpoint that an earlier proxy listens on already."""
    seen: list[tuple[Endpoint, Section]] = []
    for section, proxy in placed:
        for index, endpoint in enumerate(proxy.listen):
            other = next((where for earlier, where in seen if _meet(earlier, endpoint)), None)
            if other is not None:
                section.refuse("listen", f"an address and port that nothing else listens on; see {other.path}", index)
            seen.append((endpoint, section))


def _meet(one: Endpoint, other: Endpoint) -> bool:
    same = one.address == other.address or one.address.is_unspecified or other.address.is_unspecified
    return one.port == other.port and one.address.version == other.address.version and same
