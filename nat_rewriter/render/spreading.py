"""How one SNAT rule spreads its flows over several ranges."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence

from nat_rewriter.model.policy import SnatRule, Spread
from nat_rewriter.model.slices import Address, PortRange, Protocol, Slice
from nat_rewriter.render.ownership import keep_chain
from nat_rewriter.render.spelling import icmp_word, ip_word, l4proto, port_data, set_of

MOST_SHARES = 4096  # entries of one spread: beyond it the shares of unequal ranges are rounded

Target = tuple[Address, PortRange]


def shares(targets: Sequence[Target]) -> list[Target]:
    """Return the targets, each as often as its size asks for, so that every port gets the same share of flows."""
    sizes = [len(ports) for _, ports in targets]
    unit = math.gcd(*sizes)
    if sum(sizes) // unit > max(MOST_SHARES, len(targets)):
        unit = max(1, sum(sizes) // MOST_SHARES)
    return [target for target, size in zip(targets, sizes, strict=True) for _ in range(max(1, round(size / unit)))]


def hashed(rule: SnatRule, protocols: Sequence[Protocol], family: int, count: int) -> Iterator[tuple[str, str]]:
    """Yield (match, key expression) per nft statement: a number from 0 to count - 1 for each packet."""
    ip = ip_word(family)
    if rule.spread is Spread.RANDOM:
        yield ports_protocols(protocols, family), f"numgen random mod {count}"
    elif rule.spread is Spread.CLIENT:
        yield ports_protocols(protocols, family), f"jhash {ip} saddr mod {count} seed {_seed(rule)}"
    else:
        yield from _by_flow(rule, protocols, family, count)


def spread_by_chance(owned: Slice, family: int) -> str:
    """Return the statement that rewrites into any range of a slice, every port equally likely."""
    numbered = list(enumerate(shares([(owned.address, ports) for ports in owned.ranges])))
    key = f"numgen random mod {len(numbered)}"
    if family == 6:
        return f"{key} vmap {{ {', '.join(f'{n} : goto {keep_chain(ports)}' for n, (_, ports) in numbered)} }}"
    places = ", ".join(f"{number} : {port_data(*place)}" for number, place in numbered)
    return f"meta l4proto {{ tcp, udp }} snat ip to {key} map {{ {places} }}"


def ports_protocols(protocols: Sequence[Protocol], family: int) -> str:
    """Return the match on the transport protocols, which nft wants before a port range."""
    return f"meta l4proto {set_of(l4proto(protocol, family) for protocol in protocols)}"


def _by_flow(rule: SnatRule, protocols: Sequence[Protocol], family: int, count: int) -> Iterator[tuple[str, str]]:
    ip, echo = ip_word(family), icmp_word(family)
    ends = {
        "ports": f"{ip} saddr . th sport . {ip} daddr . th dport",
        "echo": f"{ip} saddr . {ip} daddr . {echo} id",
    }
    for name, fields in ends.items():
        if found := [protocol for protocol in protocols if (protocol is Protocol.ICMP) == (name == "echo")]:
            yield ports_protocols(found, family), f"jhash {fields} mod {count} seed {_seed(rule)}"


def _seed(rule: SnatRule) -> str:
    # Left out, the kernel draws a new seed whenever the rule is loaded, and every client would change its range.
    return f"{zlib.crc32(rule.name.encode()):#x}"
