"""SNAT and DNAT rules as statements, chains and elements of one family.

Consecutive SNAT rules that differ only in their sources and in the one range each rewrites into become one statement
with a map from client to range: the number of nft rules does not grow with the number of clients.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from nat_rewriter.model.policy import DnatRule, Network, SnatRule, Timestamps
from nat_rewriter.model.slices import Address, PortRange, Protocol
from nat_rewriter.render.spelling import address_text, concat, ip_word, network_text, port_data, quoted, set_of, target
from nat_rewriter.render.spreading import hashed, ports_protocols, shares

Target = tuple[Address, PortRange]


@dataclass(frozen=True, slots=True)
class Choice:
    """One nft statement that rewrites: what it matches of the packet beyond the rule's fields, and what it does."""

    match: str
    action: str


@dataclass(frozen=True, slots=True)
class Statement:
    """The nft rules that one SNAT rule, or a run of merged ones, becomes."""

    match: str
    excluded: tuple[str, ...]
    choices: tuple[Choice, ...]
    strip_timestamps: bool
    comment: str


@dataclass(slots=True)
class Rewriting:
    """All that the SNAT rules of one family become.

    ``strips_timestamps``: some rule takes the timestamp option from forwarded SYNs.
    """

    strips_timestamps: bool
    statements: list[Statement] = field(default_factory=list)
    client_maps: dict[str, dict[str, str]] = field(default_factory=dict)  # client -> range (4) or chain (6)
    address_maps: dict[str, dict[str, str]] = field(default_factory=dict)  # client -> address, beside a chain (6)
    source_sets: dict[str, dict[str, str]] = field(default_factory=dict)
    chains: dict[str, str] = field(default_factory=dict)  # name -> where its one rule rewrites to (6)

    @property
    def shape(self) -> object:
        """All but the elements."""
        names = (*self.client_maps, *self.address_maps, *self.source_sets)
        return self.strips_timestamps, self.statements, self.chains, [(name, self.flags(name)) for name in names]

    def flags(self, name: str) -> str:
        """Return the nft flags of a map or set by clients: a hash where all are hosts, an interval tree otherwise."""
        keys = self.client_maps.get(name) or self.address_maps.get(name) or self.source_sets[name]
        return "interval" if any("/" in key for key in keys) else ""


class FamilyRule(NamedTuple):
    """What an SNAT rule means in one family: only the networks and targets of that family."""

    rule: SnatRule
    family: int
    source: tuple[Network, ...]
    destination: tuple[Network, ...]
    targets: tuple[tuple[tuple[Protocol, ...], tuple[Target, ...]], ...]  # protocols that share their targets

    @property
    def only_target(self) -> Target | None:
        """The single range that all packets of the rule are rewritten into, if it is one."""
        if len(self.targets) == 1 and len(self.targets[0][1]) == 1:
            return self.targets[0][1][0]
        return None

    @property
    def shape(self) -> tuple[object, ...] | None:
        """What two rules must share to become one statement; None where the rule is a statement of its own."""
        if not self.source or self.only_target is None:
            return None
        rule = self.rule
        same = (rule.iifname, rule.oifname, self.destination, rule.mark, rule.exclude, rule.exclude_source)
        return (*same, rule.timestamps, self.targets[0][0])


def rewriting_of(rules: Sequence[SnatRule], family: int) -> Rewriting:
    """Return the SNAT rules of one family as statements, chains and elements, in file order."""
    family_rules = [found for rule in rules if (found := _in_family(rule, family))]
    result = Rewriting(any(found.rule.timestamps is Timestamps.STRIP for found in family_rules))
    for number, run in enumerate(_runs(family_rules)):
        if len(run) == 1:
            _add_single(result, run[0])
        else:
            _add_merged(result, run, f"{number}_{family}")
    # In an order that does not hang on which rule needs one first.
    result.chains = dict(sorted(result.chains.items()))
    return result


def dnat_elements(rules: Sequence[DnatRule], family: int) -> tuple[dict[str, str], dict[str, str]]:
    """Return the elements of the DNAT maps of one family: those that keep the port, and those that set it."""
    keep: dict[str, str] = {}
    fixed: dict[str, str] = {}
    for rule in rules:
        if rule.slice.address.version == family:
            for key in _dnat_keys(rule):
                if rule.to_port is None:
                    keep[key] = str(rule.to)
                else:
                    fixed[key] = concat(rule.to, rule.to_port)
    return keep, fixed


def _dnat_keys(rule: DnatRule) -> Iterator[str]:
    for protocol in (Protocol.TCP, Protocol.UDP):
        if protocol in rule.slice.protocols:
            for ports in rule.ranges:
                yield concat(rule.slice.address, protocol.value, ports)


def _in_family(rule: SnatRule, family: int) -> FamilyRule | None:
    source = _of_family(rule.source, family)
    if rule.source and not source:
        return None
    destination = _of_family(rule.destination, family)
    if rule.destination and not destination:
        return None
    targets = _targets(rule, family)
    return FamilyRule(rule, family, source, destination, targets) if targets or family in rule.waits_for else None


def _of_family(networks: Sequence[Network], family: int) -> tuple[Network, ...]:
    return tuple([network for network in networks if network.version == family]) if networks else ()


def _targets(rule: SnatRule, family: int) -> tuple[tuple[tuple[Protocol, ...], tuple[Target, ...]], ...]:
    if len(rule.slices) == 1:
        (owned,) = rule.slices
        targets = tuple([(owned.address, ports) for ports in owned.rewrite_ranges])
        return ((owned.protocols, targets),) if targets and owned.address.version == family else ()
    shared: dict[tuple[Target, ...], list[Protocol]] = {}
    for protocol in Protocol:
        found = tuple(
            (owned.address, ports)
            for owned in rule.slices
            if owned.address.version == family and protocol in owned.protocols
            for ports in owned.rewrite_ranges
        )
        if found:
            shared.setdefault(found, []).append(protocol)
    return tuple((tuple(protocols), targets) for targets, protocols in shared.items())


def _runs(rules: Sequence[FamilyRule]) -> Iterator[list[FamilyRule]]:
    """Split the rules into runs whose sources do not meet: within a run the order does not matter."""
    for shape, alike in itertools.groupby(rules, key=lambda rule: rule.shape):
        found = list(alike)
        if shape is None:
            yield from ([rule] for rule in found)
        elif _are_disjoint([network for rule in found for network in rule.source]):
            yield found
        else:
            yield from _disjoint_runs(found)


def _are_disjoint(networks: Iterable[Network]) -> bool:
    spans = sorted(map(_span, networks))
    return all(before[1] < after[0] for before, after in itertools.pairwise(spans))


def _disjoint_runs(rules: Iterable[FamilyRule]) -> Iterator[list[FamilyRule]]:
    """Split rules that could be one, but for their sources."""
    run: list[FamilyRule] = []
    clients = _Clients()
    for rule in rules:
        if not clients.add_all(rule.source):
            yield run
            run, clients = [], _Clients()
            clients.add_all(rule.source)
        run.append(rule)
    yield run


class _Clients:
    """Disjoint networks, as sorted first and last addresses."""

    def __init__(self) -> None:
        self._first: list[int] = []
        self._last: list[int] = []

    def add_all(self, networks: Sequence[Network]) -> bool:
        """Add the networks if none of them meets one already here; tell whether they were added."""
        spans = [_span(network) for network in networks]
        if any(self._meets(first, last) for first, last in spans):
            return False
        for first, last in spans:
            place = bisect_left(self._first, first)
            self._first.insert(place, first)
            self._last.insert(place, last)
        return True

    def _meets(self, first: int, last: int) -> bool:
        place = bisect_left(self._first, first)
        before = place > 0 and self._last[place - 1] >= first
        return before or (place < len(self._first) and self._first[place] <= last)


def _span(network: Network) -> tuple[int, int]:
    first = int(network.network_address)  # and not from broadcast_address, which takes as long as all else here
    return first, first + (1 << network.max_prefixlen - network.prefixlen) - 1


def _add_single(result: Rewriting, rule: FamilyRule) -> None:
    ip = ip_word(rule.family)
    source = f"{ip} saddr {set_of(map(network_text, rule.source))}" if rule.source else ""
    choices = [
        choice for protocols, targets in rule.targets for choice in _spread_choices(result, rule, protocols, targets)
    ]
    result.statements.append(_statement(rule, source, tuple(choices or [_waiting(rule)]), rule.rule.name))


def _waiting(rule: FamilyRule) -> Choice:
    """Return what becomes of forwarded packets while no slice is held; the host's own came in by no device."""
    return Choice(f"meta nfproto ipv{rule.family} iif != 0", "drop")


def _spread_choices(
    result: Rewriting, rule: FamilyRule, protocols: tuple[Protocol, ...], targets: tuple[Target, ...]
) -> Iterator[Choice]:
    ip = ip_word(rule.family)
    if len(targets) == 1:
        yield Choice(ports_protocols(protocols, rule.family), f"snat {ip} to {target(*targets[0])}")
        return
    numbered = list(enumerate(shares(targets)))
    for match, key in hashed(rule.rule, protocols, rule.family, len(numbered)):
        if rule.family == 4:
            elements = ", ".join(f"{number} : {port_data(*place)}" for number, place in numbered)
            yield Choice(match, f"snat ip to {key} map {{ {elements} }}")
        else:
            elements = ", ".join(f"{number} : goto {_target_chain(result, place)}" for number, place in numbered)
            yield Choice(match, f"{key} vmap {{ {elements} }}")


def _target_chain(result: Rewriting, place: Target) -> str:
    address, ports = place
    name = f"to6_{int(address):032x}_{ports.first}_{ports.last}"
    result.chains[name] = target(address, ports)
    return name


def _add_merged(result: Rewriting, run: list[FamilyRule], suffix: str) -> None:
    first = run[0]
    clients = [(network_text(network), *_only(rule)) for rule in run for network in rule.source]
    name = f"clients{suffix}"
    if first.family == 4:
        result.client_maps[name] = {client: port_data(address, ports) for client, address, ports in clients}
        action = f"snat ip to ip saddr map @{name}"
    else:
        result.client_maps[name] = {
            client: f"goto {_client_chain(result, ports, suffix)}" for client, _, ports in clients
        }
        result.address_maps[f"addresses{suffix}"] = {client: address_text(address) for client, address, _ in clients}
        action = f"ip6 saddr vmap @{name}"
    choice = Choice(ports_protocols(first.targets[0][0], first.family), action)
    comment = f"{first.rule.name} to {run[-1].rule.name}"
    result.statements.append(
        _statement(first, _source_set(result, first, result.client_maps[name], suffix), (choice,), comment)
    )


def _source_set(result: Rewriting, rule: FamilyRule, clients: Iterable[str], suffix: str) -> str:
    """Return the match on all clients; only what does not look into the client map needs it."""
    if not (rule.rule.exclude or rule.rule.exclude_source or result.strips_timestamps):
        return ""
    result.source_sets[f"sources{suffix}"] = dict.fromkeys(clients, "")
    return f"{ip_word(rule.family)} saddr @sources{suffix}"


def _client_chain(result: Rewriting, ports: PortRange, suffix: str) -> str:
    """Return the chain for a port range: the address comes from a map, so addresses share chains."""
    name = f"clients{suffix}_{ports.first}_{ports.last}"
    result.chains[name] = f"ip6 saddr map @addresses{suffix} : {ports}"
    return name


def _only(rule: FamilyRule) -> Target:
    found = rule.only_target
    assert found is not None, "only rules with one target are merged"
    return found


def _statement(rule: FamilyRule, source: str, choices: tuple[Choice, ...], comment: str) -> Statement:
    match = " ".join(part for part in (*_fields(rule), source) if part)
    strip = rule.rule.timestamps is Timestamps.STRIP
    return Statement(match, tuple(_excluded(rule)), choices, strip, comment)


def _fields(rule: FamilyRule) -> Iterator[str]:
    if rule.rule.iifname:
        yield f"iifname {quoted(rule.rule.iifname)}"
    if rule.rule.oifname:
        yield f"oifname {quoted(rule.rule.oifname)}"
    if rule.rule.mark is not None:
        yield f"meta mark {rule.rule.mark:#010x}"
    if rule.destination:
        yield f"{ip_word(rule.family)} daddr {set_of(map(network_text, rule.destination))}"


def _excluded(rule: FamilyRule) -> Iterator[str]:
    for word, networks in (("daddr", rule.rule.exclude), ("saddr", rule.rule.exclude_source)):
        if found := _of_family(networks, rule.family):
            yield f"{ip_word(rule.family)} {word} {set_of(map(network_text, found))}"
