"""``[[snat]]``: which forwarded packets are rewritten, and into which slices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import TYPE_CHECKING

from nat_rewriter.config import values
from nat_rewriter.config.plain import plain_rule
from nat_rewriter.config.section import Section, refuse_repeated_names, suggestion
from nat_rewriter.config.slices import SlicesByName
from nat_rewriter.model.policy import Network, SnatRule, Spread, Timestamps
from nat_rewriter.model.slices import Slice

if TYPE_CHECKING:
    from nat_rewriter.model.pools import Pool

MATCHES = ("iifname", "oifname", "source", "destination", "mark")
LAST_MARK = 2**32 - 1


def read_snat(root: Section, slices: SlicesByName, pools: Iterable[Pool] = ()) -> list[SnatRule]:
    """Return the sound SNAT rules of a file, in its order.

    A rule over pools has those of the file's slices that are of them, which may be none for now.
    """
    by_name = {pool.name: pool for pool in pools}
    read = [_read_rule(section, slices, by_name) for section in root.tables("snat")]
    refuse_repeated_names((section, name) for section, name, _ in read)
    return [rule for _, _, rule in read if rule and (rule.slices or rule.waits_for)]


def _read_rule(
    section: Section, slices: SlicesByName, pools: Mapping[str, Pool]
) -> tuple[Section, str | None, SnatRule | None]:
    if plain := plain_rule(section.content, slices):
        return section, plain.name, plain
    name = section.required("name", values.name)
    taken = _read_pools(section, pools)
    held = (owned for owned in slices.values() if owned and any(pool.gave(owned) for pool in taken))
    chosen = (*_read_slices(section, slices), *held)
    waits_for = frozenset(address.version for pool in taken for address in pool.addresses)
    families = waits_for | {owned.address.version for owned in chosen}
    rule = SnatRule(
        name=name or "",
        slices=chosen,
        iifname=tuple(section.distinct("iifname", values.interface, single=True).values()),
        oifname=tuple(section.distinct("oifname", values.interface, single=True).values()),
        source=_read_networks(section, "source", families),
        destination=_read_networks(section, "destination", families),
        mark=section.one("mark", values.integer(0, LAST_MARK, 16), None),
        spread=section.one("spread", values.choice(Spread), Spread.CLIENT),
        exclude=_read_networks(section, "exclude"),
        exclude_source=_read_networks(section, "exclude_source"),
        timestamps=section.one("timestamps", values.choice(Timestamps), Timestamps.KEEP),
        waits_for=waits_for,
    )
    section.refuse_unknown()
    _refuse_matchless(section, rule)
    return section, name, rule if section.clean else None


def _read_slices(section: Section, slices: SlicesByName) -> tuple[Slice, ...]:
    """Return the slices of the rule; none at all when one of them is unknown or faulty."""
    names = section.distinct("slices", values.text)
    if not section.has("slices") and not section.has("pools"):
        section.refuse("slices", 'the names of one or more slices, e.g. ["ams-1"]')
    for index, name in names.items():
        if name not in slices:
            section.refuse("slices", f"the name of a [[slice]]{suggestion(name, slices)}", index)
    found = [slices.get(name) for name in names.values()]
    sound = section.sound("slices") and all(found)
    return tuple(owned for owned in found if owned) if sound else ()


def _read_pools(section: Section, pools: Mapping[str, Pool]) -> list[Pool]:
    """Return the pools of the rule that there are."""
    names = section.distinct("pools", values.text)
    for index, name in names.items():
        if name not in pools:
            section.refuse("pools", f"the name of a [[pool]]{suggestion(name, pools)}", index)
    return [pools[name] for name in names.values() if name in pools]


def _read_networks(section: Section, key: str, families: Set[int] = frozenset()) -> tuple[Network, ...]:
    """Return the merged networks of a key; given families, one of another is a problem."""
    items = section.many(key, values.network, single=True)
    for index, network in items.items():
        if families and network.version not in families:
            section.refuse(key, f"IPv{min(families)} networks, the family of the rule's slices", index)
    return merge_networks(items.values())


def merge_networks(networks: Iterable[Network]) -> tuple[Network, ...]:
    """Return networks that cover the same addresses and neither overlap nor could be one, IPv4 first."""
    listed = list(networks)
    ipv4 = collapse_addresses(network for network in listed if isinstance(network, IPv4Network))
    ipv6 = collapse_addresses(network for network in listed if isinstance(network, IPv6Network))
    return (*ipv4, *ipv6)


def _refuse_matchless(section: Section, rule: SnatRule) -> None:
    """Report a rule that would match every packet, or none."""
    if not any(section.has(key) for key in MATCHES):
        section.refuse("source", f"at least one of {', '.join(MATCHES)}: this rule would match every packet")
    if not section.clean:
        return
    sources = {network.version for network in rule.source}
    destinations = {network.version for network in rule.destination}
    if sources and destinations and not sources & destinations:
        section.refuse("destination", f"a network of IPv{min(sources)} as in source: no packet has two families")
