"""The whole explanation of a tuple, as values."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from nat_rewriter.explain.matching import (
    Match,
    Target,
    Trial,
    chosen_target,
    deciding,
    dnat_of,
    list_targets,
    rewriting_into,
    slice_of,
    try_rules,
)
from nat_rewriter.explain.outcomes import ModeOutcome, outcomes
from nat_rewriter.explain.ports import PortChoice, choose_port
from nat_rewriter.explain.proxying import Taking, connecting_from, takings
from nat_rewriter.explain.situation import Packet, SeenSocket, Situation, is_rewritten
from nat_rewriter.model.flows import Flow, Origin
from nat_rewriter.model.policy import Coexist, DnatRule, Guard, Policy, SnatRule
from nat_rewriter.model.proxies import Proxy, ProxyMode
from nat_rewriter.model.slices import Address, Slice
from nat_rewriter.model.tuples import FlowTuple

_INTERCEPTING = (ProxyMode.TPROXY, ProxyMode.REDIRECT)  # as a packet meets their chains


class Kind(enum.Enum):
    """What a tuple is to this host."""

    WIRE = "wire"  # from a soft-unicast address, as it is on the wire
    CLIENT = "client"  # from any other address, as a client sends it


@dataclass(frozen=True, slots=True)
class Subject:
    """The packet that is explained. ``turned``: it was given as a packet to a slice, and is read from the slice."""

    packet: Packet
    kind: Kind
    turned: bool = False


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that is to be said of a tuple.

    Of a client's tuple, ``trials`` are the SNAT rules tried on it, ``targets`` the ranges of the one that decides,
    ``target`` the range it gives this packet (None: chance decides), and ``port`` what comes of that. Of a tuple on the
    wire, ``rewriters`` are the rules that may rewrite a flow into it. ``wire`` is what the entry makes of the tuple.
    ``taken_in``: the proxies that take a client's packet in; ``connecting``: those that may connect from a tuple on the
    wire.
    """

    subject: Subject
    situation: Situation
    owner: Slice | None
    flows: tuple[Flow, ...]
    sockets: tuple[SeenSocket, ...]
    trials: tuple[Trial, ...]
    deciding: Trial | None
    targets: tuple[Target, ...]
    target: Target | None
    port: PortChoice | None
    rewriters: tuple[tuple[SnatRule, Target], ...]
    dnat: tuple[DnatRule, FlowTuple] | None
    modes: tuple[ModeOutcome, ...]
    coexist: Coexist
    guard: Guard
    soft: frozenset[Address]
    wire: FlowTuple | None = None
    taken_in: tuple[Taking, ...] = ()
    connecting: tuple[Proxy, ...] = ()

    @property
    def another_socket(self) -> tuple[str, ...]:
        """The errors that a further socket gets from the sockets there are, before any packet is sent."""
        if not self.sockets:
            return ()
        connected = self.sockets[0].protocol == "tcp" and not self.sockets[0].peerless
        # With SO_REUSEADDR on both, bind() works and the 4-tuple decides.
        return ("EADDRINUSE from bind()", "EADDRNOTAVAIL from connect()") if connected else ("EADDRINUSE from bind()",)

    def flow_type(self, flow: Flow) -> str:
        """Return local-flow, nat-flow, or flow for an entry that has nothing to do with the slices."""
        if flow.original.src in self.soft:
            return "local-flow"
        ends = (flow.reply.dst, flow.original.dst)
        return "nat-flow" if is_rewritten(flow) and any(end in self.soft for end in ends) else "flow"

    @property
    def configured(self) -> ModeOutcome:
        """What would happen in the mode of the configuration."""
        return next(one for one in self.modes if one.coexist is self.coexist)


def subject_of(packet: Packet, policy: Policy) -> Subject:
    """Return a packet with what it is to this host; one to a slice is turned, and its interfaces with it."""
    soft = {owned.address for owned in policy.slices}
    if packet.tuple.src in soft:
        return Subject(packet, Kind.WIRE)
    if packet.tuple.dst in soft:
        turned = replace(packet, tuple=packet.tuple.reversed(), iifname=None, oifname=packet.iifname)
        return Subject(turned, Kind.WIRE, turned=True)
    return Subject(packet, Kind.CLIENT)


def explain(policy: Policy, subject: Subject, situation: Situation) -> Explanation:
    """Return who holds a tuple, which rule takes it, and what would happen to whoever wants it."""
    packet, wanted = subject.packet, subject.packet.tuple
    wire = subject.kind is Kind.WIRE
    trials = [] if wire else try_rules(policy.snat, packet, Origin.FORWARDED)
    decided = deciding(trials)
    takes = decided is not None and decided.match in (Match.TAKES, Match.UNCERTAIN)
    rule = decided.rule if decided is not None and takes else None
    target = chosen_target(rule, packet) if rule else None
    return Explanation(
        subject=subject,
        situation=situation,
        owner=slice_of(policy.slices, wanted.src, wanted.sport, wanted.protocol),
        flows=_holders(situation, wanted),
        sockets=tuple(situation.sockets_at(wanted)),
        trials=tuple(trials),
        deciding=decided,
        targets=tuple(list_targets(rule, packet)) if rule else (),
        target=target,
        port=choose_port(wanted, target.address, target.ports, situation) if target else None,
        rewriters=tuple(rewriting_into(policy, packet)) if wire else (),
        dnat=dnat_of(policy, wanted.reversed()) if wire else None,
        modes=tuple(outcomes(policy, packet, situation, wire=wire)),
        coexist=policy.controller.coexist,
        guard=policy.controller.guard,
        soft=frozenset(one.address for one in policy.slices),
        wire=_on_the_wire(situation, wanted),
        taken_in=() if wire or situation.destination_local else tuple(takings(policy, packet, _INTERCEPTING)),
        connecting=tuple(connecting_from(policy, packet)) if wire else (),
    )


def _holders(situation: Situation, wanted: FlowTuple) -> tuple[Flow, ...]:
    found = (situation.entry_of(wanted), situation.holder_of(wanted))
    return tuple({flow.id: flow for flow in found if flow is not None}.values())


def _on_the_wire(situation: Situation, wanted: FlowTuple) -> FlowTuple | None:
    flow = situation.entry_of(wanted)
    if flow is None:
        return None
    return (flow.reply if flow.original == wanted else flow.original).reversed()
