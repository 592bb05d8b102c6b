"""What would happen to a socket, to a forwarded packet and to an unsolicited one, in each mode."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nat_rewriter.explain.hooks import chains_of
from nat_rewriter.explain.journey import travel
from nat_rewriter.explain.matching import Target, rewriting_into
from nat_rewriter.explain.modes import in_mode
from nat_rewriter.explain.passage import Fate, Outcome, Passage
from nat_rewriter.explain.ports import room_text
from nat_rewriter.explain.situation import Packet, Situation, is_ending
from nat_rewriter.explain.stations import is_owned
from nat_rewriter.model.flows import Flow, Origin, Status
from nat_rewriter.model.policy import Coexist, Policy, SnatRule


@dataclass(frozen=True, slots=True)
class ModeOutcome:
    """What would happen in one mode."""

    coexist: Coexist
    socket: Outcome
    forwarded: Outcome
    inbound: Outcome | None


def outcomes(policy: Policy, packet: Packet, situation: Situation, *, wire: bool) -> list[ModeOutcome]:
    """Return what would happen in each mode. ``wire``: the source of the tuple is a soft-unicast address."""
    return [_in_mode(policy, coexist, packet, situation, wire) for coexist in Coexist]


def _in_mode(policy: Policy, coexist: Coexist, packet: Packet, situation: Situation, wire: bool) -> ModeOutcome:
    configured = coexist is policy.controller.coexist
    # The live set says who claimed what only in the mode that is in force.
    seen = situation if configured else replace(situation, claims_known=False)
    meant = in_mode(policy, coexist)
    if wire:
        wanting = _wanting(meant, packet, seen)
        return ModeOutcome(coexist, _socket(meant, packet, seen), wanting, _inbound(meant, packet, seen))
    passage = _forwarded(meant, packet, seen)
    return ModeOutcome(coexist, _rival(passage, seen), _outcome(passage), None)


def _socket(policy: Policy, packet: Packet, situation: Situation) -> Outcome:
    passage = Passage(policy, situation, replace(packet, iifname=None), Origin.LOCAL)
    travel(passage, chains_of(policy))
    leaves_soft = passage.from_soft and not passage.ended
    if leaves_soft and passage.packet.oifname != "lo" and not is_owned(policy, passage.now, passage.ports):
        return _outcome(passage, Fate.LEAKED, f"{passage.reason}: it leaves the slice")
    return _outcome(passage)


def _forwarded(policy: Policy, packet: Packet, situation: Situation) -> Passage:
    passage = Passage(policy, situation, packet, Origin.FORWARDED)
    travel(passage, chains_of(policy))
    return passage


def _rival(passage: Passage, situation: Situation) -> Outcome:
    """Return what comes of a socket that wants what a client's flow has on the wire, or will have.

    Where the flow is not rewritten, or its source is this host's own, it is a socket with the tuple itself.
    """
    policy, packet = passage.policy, passage.packet
    if situation.source_local or not passage.from_soft:
        return _socket(policy, packet, situation)
    wire = replace(passage.now, sport=_a_port(passage))
    if wire.has_echo_id:
        wire = replace(wire, dport=wire.sport)
    if passage.entry is None:
        expected = Flow(packet.tuple, wire.reversed(), Status.CONFIRMED | Status.SRC_NAT, id=0)
        situation = replace(situation, flows=(*(situation.flows or ()), expected), claims_known=False)
    return _socket(policy, replace(packet, tuple=wire), situation)


def _a_port(passage: Passage) -> int:
    """Return a port that the packet may have got: the one it has, or the first that is free."""
    ports = passage.ports[0]
    taken = passage.situation.ports_taken(passage.packet.tuple, passage.now.src, ports)
    return next((port for port in range(ports.first, ports.last + 1) if port not in taken), passage.now.sport)


def _inbound(policy: Policy, packet: Packet, situation: Situation) -> Outcome:
    """Return what comes of a packet from the other end of a tuple on the wire."""
    arriving = replace(packet, tuple=packet.tuple.reversed(), iifname=packet.oifname, oifname=None)
    return _outcome(_forwarded(policy, arriving, replace(situation, destination_local=None)))


def _wanting(policy: Policy, packet: Packet, situation: Situation) -> Outcome:
    """Return whether a client's flow may be rewritten into a tuple on the wire."""
    rules = rewriting_into(policy, packet)
    if not rules:
        return Outcome(Fate.NEVER, _why_never(policy, packet), packet.tuple)
    rule, target = rules[0]
    fate, text = _taking(packet, situation, rule, target)
    passage = Passage(policy, situation, packet, Origin.FORWARDED, candidate=rule)
    if fate is Fate.AVOIDS:
        passage.ports = (target.ports,)
    passage.settle(fate, text)
    travel(passage, chains_of(policy))
    return _outcome(passage, fate, text)


def _taking(packet: Packet, situation: Situation, rule: SnatRule, target: Target) -> tuple[Fate, str]:
    wanted = packet.tuple
    place = f"slice {target.slice.name}, {target.address} {target.ports}"
    taken = situation.ports_taken(wanted, target.address, target.ports)
    room = room_text(len(target.ports), len(target.ports) - len(taken), sum(map(is_ending, taken.values())))
    free = f"{room} (to {wanted.destination})"
    if wanted.sport in taken:
        return Fate.AVOIDS, f"[[snat]] {rule.name} rewrites into {place}, and passes over what is held: {free}"
    if situation.sockets_of(wanted):
        return Fate.TAKES_ANYWAY, (
            f"[[snat]] {rule.name} may take it from the socket, which has no conntrack entry: {place}, {free}"
        )
    return Fate.MAY_TAKE, f"[[snat]] {rule.name} may rewrite a flow into it: {place}, {free}"


def _why_never(policy: Policy, packet: Packet) -> str:
    kept = any(
        owned.address == packet.tuple.src and any(packet.tuple.sport in ports for ports in owned.socket_ranges)
        for owned in policy.slices
    )
    return "its port is kept for sockets: no rule rewrites into it" if kept else "no [[snat]] rule rewrites into it"


def _outcome(passage: Passage, fate: Fate | None = None, text: str | None = None) -> Outcome:
    return Outcome(
        fate or passage.fate, text or passage.reason, passage.packet.tuple, passage.ports, tuple(passage.steps)
    )
