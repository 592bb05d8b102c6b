"""Which proxy takes a connection in, and which ones connect from a tuple on the wire."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nat_rewriter.explain.matching import within
from nat_rewriter.explain.passage import Fate, Passage, Verdict
from nat_rewriter.explain.situation import Packet
from nat_rewriter.explain.source_nat import Account
from nat_rewriter.model.policy import Coexist, Policy
from nat_rewriter.model.proxies import Endpoint, Proxy, ProxyMode


@dataclass(frozen=True, slots=True)
class Taking:
    """A proxy that takes a packet in, and where; ``only_where``: what it depends on, if that is not known."""

    proxy: Proxy
    endpoint: Endpoint
    only_where: str = ""


def at_proxy_redirect(passage: Passage) -> Account:
    """Tell whether a proxy has the packet redirected to it."""
    return _at_proxy(passage, ProxyMode.REDIRECT, "redirected")


def at_proxy_tproxy(passage: Passage) -> Account:
    """Tell whether a proxy is handed the packet as it is."""
    return _at_proxy(passage, ProxyMode.TPROXY, "handed over")


def takings(policy: Policy, packet: Packet, modes: Sequence[ProxyMode], *, anybodys: bool = False) -> list[Taking]:
    """Return the proxies that take a forwarded packet in, in the order of modes, up to the first that surely does.

    ``anybodys``: it stands for the packet of any client, from whatever source and by whatever interface.
    """
    found: list[Taking] = []
    asked = (proxy for mode in modes for proxy in policy.proxies if proxy.mode is mode)
    for taking in _matching(asked, packet, anybodys):
        found.append(taking)
        if not taking.only_where:
            break
    return found


def connecting_from(policy: Policy, packet: Packet) -> list[Proxy]:
    """Return the proxies that may connect from the source of a tuple on the wire."""
    split = policy.controller.coexist is Coexist.SPLIT
    if packet.tuple.protocol != "tcp":
        return []
    return [
        proxy
        for proxy in policy.proxies
        if any(
            address == packet.tuple.src and packet.tuple.sport in ports
            for address, ports in proxy.source_ranges(split=split)
        )
    ]


def onward_text(proxy: Proxy) -> str:
    """Return how a proxy goes on from what it has taken in."""
    return f"connects on from {' or '.join(f'slice {owned.name}' for owned in proxy.slices)}, as a local socket"


def _matching(proxies: Iterable[Proxy], packet: Packet, anybodys: bool) -> Iterator[Taking]:
    for proxy in proxies:
        for endpoint in proxy.listen:
            if endpoint.address.version == packet.family and _fits(proxy, packet, anybodys):
                yield Taking(proxy, endpoint, _only_where(proxy, packet, anybodys))


def _fits(proxy: Proxy, packet: Packet, anybodys: bool) -> bool:
    """Tell whether what is known of a packet is what a proxy takes in."""
    wanted = packet.tuple
    if wanted.protocol != "tcp" or (proxy.ports and not any(wanted.dport in ports for ports in proxy.ports)):
        return False
    if proxy.destination and not within(proxy.destination, wanted.dst):
        return False
    if anybodys:
        return True
    source = not proxy.source or within(proxy.source, wanted.src)
    return source and (not proxy.iifname or packet.iifname is None or packet.iifname in proxy.iifname)


def _only_where(proxy: Proxy, packet: Packet, anybodys: bool) -> str:
    conditions = []
    if proxy.iifname and (anybodys or packet.iifname is None):
        conditions.append(f"it came in by {' or '.join(proxy.iifname)}")
    if proxy.source and anybodys:
        conditions.append(f"its source is in {', '.join(map(str, proxy.source))}")
    return " and ".join(conditions)


def _at_proxy(passage: Passage, mode: ProxyMode, how: str) -> Account:
    if passage.entry is not None:
        return Verdict.PASSES, "what belongs to an entry goes on as it began"
    if passage.to_soft or passage.situation.destination_local:
        return Verdict.PASSES, "for this host itself: no proxy takes it in"
    found = takings(passage.policy, passage.current(), [mode], anybodys=passage.candidate is not None)
    if not found:
        return Verdict.PASSES, "no [[proxy]] takes it in"
    taking = found[-1]
    if taking.only_where:
        return Verdict.PASSES, f"[[proxy]] {taking.proxy.name} takes it in where {taking.only_where}"
    text = f"[[proxy]] {taking.proxy.name} takes it in and {onward_text(taking.proxy)}"
    passage.settle(Fate.PROXIED, f"{text}; while natctl proxy does not run it is refused", end=True)
    return Verdict.REWRITES, f"{how} to [[proxy]] {taking.proxy.name} at {taking.endpoint}"
