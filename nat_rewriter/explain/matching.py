"""Which rule takes a packet: the first that matches, and why those before it do not."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from nat_rewriter.explain.hashing import number_of
from nat_rewriter.explain.situation import PROTOCOLS, Packet
from nat_rewriter.model.flows import Origin
from nat_rewriter.model.policy import DnatRule, Network, Policy, SnatRule
from nat_rewriter.model.slices import Address, PortRange, Slice
from nat_rewriter.model.tuples import FlowTuple
from nat_rewriter.render.spreading import hashed, shares


class Match(enum.Enum):
    """What a rule does with a packet.

    ``UNCERTAIN``: it depends on an interface that is not known. ``WAITS``: its pools have given no slice, so it drops.
    """

    TAKES = "takes"
    EXCLUDES = "excludes"
    WAITS = "waits"
    DIFFERS = "differs"
    UNCERTAIN = "uncertain"
    NOT_REACHED = "not-reached"


_DECIDES = (Match.TAKES, Match.EXCLUDES, Match.WAITS)


@dataclass(frozen=True, slots=True)
class Trial:
    """A rule tried on a packet, and the reason for what came of it."""

    rule: SnatRule
    match: Match
    reason: str


@dataclass(frozen=True, slots=True)
class Target:
    """A range that a rule rewrites into, and its share of the rule's flows."""

    slice: Slice
    ports: PortRange
    share: Fraction

    @property
    def address(self) -> Address:
        """The address of its slice."""
        return self.slice.address


def try_rules(rules: Sequence[SnatRule], packet: Packet, origin: Origin) -> list[Trial]:
    """Try all rules in file order; after the first that decides, the others are not reached."""
    trials: list[Trial] = []
    decided: str | None = None
    for rule in rules:
        if decided is not None:
            trials.append(Trial(rule, Match.NOT_REACHED, f"{decided} comes first"))
            continue
        trial = try_rule(rule, packet, origin)
        trials.append(trial)
        if trial.match in _DECIDES:
            decided = rule.name
    return trials


def deciding(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial of the rule that decides, or would if its interface is the right one; None: no rule takes it."""
    return next((one for one in trials if one.match in (*_DECIDES, Match.UNCERTAIN)), None)


def try_rule(rule: SnatRule, packet: Packet, origin: Origin) -> Trial:
    """Return what one rule does with a packet, as if no other came before it."""
    if not _has_slice(rule, packet) and not waits(rule, packet, origin):
        return Trial(rule, Match.DIFFERS, f"has no slice of IPv{packet.family}")
    uncertain = None
    for match, reason in _fields(rule, packet, origin):
        if match is Match.DIFFERS:
            return Trial(rule, match, reason)
        uncertain = uncertain or (reason if match is Match.UNCERTAIN else None)
    decision = _decision(rule, packet, origin)
    if uncertain and decision.match in _DECIDES:
        return Trial(rule, Match.UNCERTAIN, uncertain)
    return decision


def waits(rule: SnatRule, packet: Packet, origin: Origin) -> bool:
    """Tell whether a rule drops what it takes, because its pools have given it no slice of the packet's family."""
    return origin is Origin.FORWARDED and packet.family in rule.waits_for and not _has_slice(rule, packet)


def _has_slice(rule: SnatRule, packet: Packet) -> bool:
    return any(owned.address.version == packet.family for owned in rule.slices)


def _fields(rule: SnatRule, packet: Packet, origin: Origin) -> Iterator[tuple[Match, str]]:
    """Yield how each field of a rule compares with the packet, in the order of the rendered match."""
    if rule.iifname:
        # A packet of this host has come in by no interface.
        yield _interface("iifname", rule.iifname, packet.iifname if origin is Origin.FORWARDED else "")
    if rule.oifname:
        yield _interface("oifname", rule.oifname, packet.oifname)
    if rule.mark is not None:
        differs = Match.TAKES if rule.mark == packet.mark else Match.DIFFERS
        yield differs, f"mark is {packet.mark:#x}, not {rule.mark:#x}"
    for word, networks, address in (
        ("destination", rule.destination, packet.tuple.dst),
        ("source", rule.source, packet.tuple.src),
    ):
        if networks:
            match = Match.TAKES if within(networks, address) else Match.DIFFERS
            yield match, f"{word} {address} is not in {_listed(networks)}"


def _interface(word: str, wanted: Collection[str], actual: str | None) -> tuple[Match, str]:
    names = " or ".join(wanted)
    if actual is None:
        option = "--iif" if word == "iifname" else "--oif"
        return Match.UNCERTAIN, f"only where {word} is {names} ({option} says which it is)"
    reason = f"{word} is {actual}, not {names}" if actual else f"a packet of this host has no {word}, {names} is wanted"
    return (Match.TAKES if actual in wanted else Match.DIFFERS), reason


def _decision(rule: SnatRule, packet: Packet, origin: Origin) -> Trial:
    """Return what a rule whose fields match does. It excludes whatever the protocol: see the rendered rule."""
    for word, networks, address in (
        ("destination", rule.exclude, packet.tuple.dst),
        ("source", rule.exclude_source, packet.tuple.src),
    ):
        if within(networks, address):
            return Trial(rule, Match.EXCLUDES, f"{word} {address} is excluded: the packet keeps its source")
    if waits(rule, packet, origin):
        return Trial(rule, Match.WAITS, f"its pools have given it no slice of IPv{packet.family} yet: dropped")
    if not list_targets(rule, packet):
        return Trial(rule, Match.DIFFERS, f"has no slice of IPv{packet.family} for {packet.protocol.value}")
    return Trial(rule, Match.TAKES, "matches")


def within(networks: Sequence[Network], address: Address) -> bool:
    """Tell whether an address lies in one of some networks, of which some may be of the other family."""
    return any(network.version == address.version and address in network for network in networks)


def _listed(networks: Sequence[Network], most: int = 3) -> str:
    shown = ", ".join(map(str, networks[:most]))
    return shown if len(networks) <= most else f"{shown} or {len(networks) - most} more"


def list_targets(rule: SnatRule, packet: Packet) -> list[Target]:
    """Return the ranges that a rule has for a packet's family and protocol, each once, in the order of its slices."""
    places = _places(rule, packet)
    if not places:
        return []
    spread = shares(list(places))
    return [
        Target(owned, ports, Fraction(spread.count((address, ports)), len(spread)))
        for (address, ports), owned in places.items()
    ]


def chosen_target(rule: SnatRule, packet: Packet) -> Target | None:
    """Return the range that a rule gives a packet, by the kernel's own hash; None where chance decides."""
    places = _places(rule, packet)
    spread = shares(list(places)) if len(places) > 1 else list(places)
    number = _number(rule, packet, len(spread)) if len(places) > 1 else 0
    if number is None:
        return None
    address, ports = spread[number]
    return Target(places[address, ports], ports, Fraction(1))


def _places(rule: SnatRule, packet: Packet) -> dict[tuple[Address, PortRange], Slice]:
    return {
        (owned.address, ports): owned
        for owned in rule.slices
        if owned.address.version == packet.family and packet.protocol in owned.protocols
        for ports in owned.rewrite_ranges
    }


def _number(rule: SnatRule, packet: Packet, count: int) -> int | None:
    # The very expression that is rendered, so that there is one truth about fields, order and seed.
    ((_, expression),) = hashed(rule, [packet.protocol], packet.family, count)
    return number_of(expression, packet.tuple)


def rewriting_into(policy: Policy, packet: Packet) -> list[tuple[SnatRule, Target]]:
    """Return the rules that may rewrite a client's flow into a tuple on the wire, with the range they would use."""
    return [
        (rule, target)
        for rule in policy.snat
        if _may_go_to(rule, packet)
        for target in list_targets(rule, packet)
        if target.address == packet.tuple.src and packet.tuple.sport in target.ports
    ]


def _may_go_to(rule: SnatRule, packet: Packet) -> bool:
    """Tell whether a rule takes packets with this destination and these interfaces, whatever their source."""
    dst = packet.tuple.dst
    if within(rule.exclude, dst) or (rule.destination and not within(rule.destination, dst)):
        return False
    named = ((rule.iifname, packet.iifname), (rule.oifname, packet.oifname))
    return all(not wanted or actual is None or actual in wanted for wanted, actual in named)


def slice_of(slices: Sequence[Slice], address: Address, port: int, protocol: str) -> Slice | None:
    """Return the slice that owns an address and port, or echo id."""
    wanted = PROTOCOLS[protocol]
    return next((one for one in slices if one.address == address and wanted in one.protocols and one.owns(port)), None)


def dnat_of(policy: Policy, packet: FlowTuple) -> tuple[DnatRule, FlowTuple] | None:
    """Return the rule that takes an unsolicited packet to a slice, and the tuple it goes on with."""
    for rule in policy.dnat:
        ported = packet.protocol in ("tcp", "udp") and PROTOCOLS[packet.protocol] in rule.slice.protocols
        if ported and rule.slice.address == packet.dst and any(packet.dport in ports for ports in rule.ranges):
            port = rule.to_port or packet.dport
            return rule, FlowTuple(packet.protocol, packet.src, packet.sport, rule.to, port)
    return None
