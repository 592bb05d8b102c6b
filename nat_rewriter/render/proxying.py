"""Rules that lead connections to proxies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nat_rewriter.model.policy import Network
from nat_rewriter.model.proxies import TPROXY_MARK, Endpoint, Proxy, ProxyMode
from nat_rewriter.render.spelling import ip_word, network_text, quoted, set_of


@dataclass(frozen=True, slots=True)
class Proxying:
    """The rules for the proxies that intercept, each a line; ``mark``: of packets that are a proxy's."""

    redirects: tuple[str, ...]
    tproxies: tuple[str, ...]
    mark: str = f"{TPROXY_MARK:#010x}"


def proxying_of(proxies: Sequence[Proxy]) -> Proxying:
    """Return the rules that lead connections to these proxies."""
    return Proxying(
        tuple(_rules(proxies, ProxyMode.REDIRECT)),
        tuple(_rules(proxies, ProxyMode.TPROXY)),
    )


def _rules(proxies: Sequence[Proxy], mode: ProxyMode) -> Iterator[str]:
    for proxy in proxies:
        for endpoint in proxy.listen if proxy.mode is mode else ():
            match = _match(proxy, endpoint.address.version)
            if match is not None:
                yield " ".join((*match, _verdict(mode, endpoint), f'comment "proxy {proxy.name}"'))


def _match(proxy: Proxy, family: int) -> list[str] | None:
    """Return what a connection has to be; None where none of this family is meant."""
    words = [f"meta nfproto ipv{family}"]
    words += [f"iifname {quoted(proxy.iifname)}"] if proxy.iifname else []
    for word, networks in (("saddr", proxy.source), ("daddr", proxy.destination)):
        ours = _of_family(networks, family)
        if networks and not ours:
            return None
        words += [f"{ip_word(family)} {word} {ours}"] if ours else []
    words.append(f"tcp dport {set_of(proxy.ports)}" if proxy.ports else "meta l4proto tcp")
    return [*words, "fib daddr type != local"]


def _of_family(networks: Sequence[Network], family: int) -> str:
    ours = [network_text(network) for network in networks if network.version == family]
    return set_of(ours) if ours else ""


def _verdict(mode: ProxyMode, endpoint: Endpoint) -> str:
    ip = ip_word(endpoint.address.version)
    everywhere = endpoint.address.is_unspecified
    place = f":{endpoint.port}" if everywhere else str(endpoint)
    if mode is ProxyMode.TPROXY:
        # Connections that were forwarded before the rule came stay as they are.
        mark = f"{TPROXY_MARK:#010x}"
        return f"ct state new tproxy {ip} to {place} ct mark set {mark} meta mark set {mark} accept"
    return f"redirect to {place}" if everywhere else f"dnat {ip} to {place}"
