"""What source NAT makes of the first packet of a flow: confine, the rules, or the kernel's own way out."""

from __future__ import annotations

from nat_rewriter.explain.matching import Match, chosen_target, deciding, list_targets, slice_of, try_rules, waits
from nat_rewriter.explain.passage import Fate, Passage, Verdict
from nat_rewriter.explain.ports import Choice, PortChoice, choose_port, null_binding_range, ranges_text
from nat_rewriter.explain.situation import is_rewritten
from nat_rewriter.model.flows import Origin
from nat_rewriter.model.policy import Coexist, SnatRule
from nat_rewriter.model.slices import Address, PortRange, Protocol
from nat_rewriter.model.tuples import FlowTuple
from nat_rewriter.render.parts import Parts

Account = tuple[Verdict, str]
MOST_TOLD = 4  # ranges in a sentence


def at_srcnat(passage: Passage) -> Account:
    """Tell what source NAT does: an entry has decided already; else a socket is confined, or a rule rewrites."""
    if passage.entry is not None:
        return _by_entry(passage)
    if passage.candidate is not None:
        return Verdict.REWRITES, passage.reason
    own = own_range(passage)
    if own is not None:
        return _spilled(passage) or _confined(passage, own)
    trial = deciding(try_rules(passage.policy.snat, passage.current(), passage.origin))
    if trial is None:
        return _unruled(passage, "no rule takes it")
    if trial.match is Match.EXCLUDES:
        return _unruled(passage, f"[[snat]] {trial.rule.name}: {trial.reason}")
    condition = f" ({trial.reason})" if trial.match is Match.UNCERTAIN else ""
    if waits(trial.rule, passage.current(), passage.origin):
        return _waiting(passage, trial.rule, condition)
    return _ruled(passage, trial.rule, condition)


def own_range(passage: Passage) -> PortRange | None:
    """Return the range that a packet from a slice is kept in; None where nothing confines it."""
    if passage.policy.controller.coexist is Coexist.OFF:
        return None
    now = passage.now
    if now.has_echo_id:
        echo = [
            ports
            for owned in passage.policy.slices
            if owned.address == now.src and Protocol.ICMP in owned.protocols
            for ports in owned.ranges
        ]
        return max(echo, key=len, default=None)
    owned = slice_of(passage.policy.slices, now.src, now.sport, now.protocol)
    parts = (*owned.rewrite_ranges, *owned.socket_ranges) if owned else ()
    return next((ports for ports in parts if now.sport in ports), None)


def _by_entry(passage: Passage) -> Account:
    wire = passage.translated
    if (wire.src, wire.sport) == (passage.now.src, passage.now.sport):
        return Verdict.PASSES, "its entry leaves the source as it is"
    passage.leave_from(wire)
    passage.settle(passage.fate, f"{passage.reason}, which leaves from {wire.source}")
    return Verdict.REWRITES, f"its entry rewrites the source to {wire.source}"


def _confined(passage: Passage, own: PortRange) -> Account:
    chosen = choose_port(passage.now, passage.now.src, own, passage.situation)
    word = "id" if passage.now.has_echo_id else "port"
    if chosen.choice is Choice.NONE:
        passage.settle(
            Fate.EXHAUSTED, f"no {word} of {own} is free to that destination: dropped, {passage.lost}", end=True
        )
        return Verdict.DROPS, passage.reason
    if chosen.choice is Choice.KEPT:
        passage.settle(Fate.KEPT, f"keeps {word} {passage.now.sport}")
        return Verdict.PASSES, f"confine: {word} {passage.now.sport} is free and kept"
    why = "is taken" if passage.now.sport in own else "is not in the range of the slice"
    _take(passage, passage.now.src, chosen)
    passage.settle(
        Fate.MOVED, f"moved to {_place(chosen)} of the slice, since {word} {passage.packet.tuple.sport} {why}"
    )
    return Verdict.REWRITES, f"confine: {word} {passage.packet.tuple.sport} {why}, moved to {_place(chosen)}"


def _spilled(passage: Passage) -> Account | None:
    """Tell where the port of a claimed tuple goes whose slice has further ranges: to any of them."""
    now = passage.now
    owned = slice_of(passage.policy.slices, now.src, now.sport, now.protocol)
    if not (Parts.of(passage.policy).spill and owned and len(owned.ranges) > 1 and is_claimed(passage)):
        return None
    passage.ports = owned.ranges
    ranges = ranges_text(owned.ranges)
    text = f"moved to {ranges} of the slice by chance, since port {now.sport} is taken"
    passage.settle(Fate.MOVED, text)
    return Verdict.REWRITES, f"confine: {text}"


def is_claimed(passage: Passage) -> bool:
    """Tell whether the set of claims has the tuple: as the live set says, or as it would be in a mode that has one."""
    situation = passage.situation
    if passage.now.has_echo_id:
        return False
    if situation.claims_known:
        return situation.claim is not None
    holder = situation.holder_of(passage.now)
    return holder is not None and is_rewritten(holder)


def _ruled(passage: Passage, rule: SnatRule, condition: str) -> Account:
    target = chosen_target(rule, passage.current())
    if target is None:
        return _by_chance(passage, rule, condition)
    chosen = choose_port(passage.now, target.address, target.ports, passage.situation)
    place = f"slice {target.slice.name}, {target.address} {target.ports}"
    if chosen.choice is Choice.NONE:
        text = (
            f"[[snat]] {rule.name}: no port of {place} is free to that destination: dropped, {passage.lost}{condition}"
        )
        passage.settle(Fate.EXHAUSTED, text, end=True)
        return Verdict.DROPS, text
    _take(passage, target.address, chosen)
    text = f"[[snat]] {rule.name} rewrites into {place}: {_how(chosen)}{condition}"
    passage.settle(Fate.REWRITTEN, text)
    return Verdict.REWRITES, text


def _waiting(passage: Passage, rule: SnatRule, condition: str) -> Account:
    text = f"[[snat]] {rule.name}: no slice of its pools is held: dropped, {passage.lost}{condition}"
    passage.settle(Fate.EXHAUSTED, text, end=True)
    return Verdict.DROPS, text


def _by_chance(passage: Passage, rule: SnatRule, condition: str) -> Account:
    targets = list_targets(rule, passage.current())
    few = targets[:MOST_TOLD]
    shares = ", ".join(f"{target.address} {target.ports} ({float(target.share):.0%})" for target in few)
    more = f" and {len(targets) - len(few)} more" if len(targets) > len(few) else ""
    text = f"[[snat]] {rule.name} rewrites into one of {shares}{more} by chance{condition}"
    passage.leave_from(FlowTuple(passage.now.protocol, targets[0].address, 0, passage.now.dst, passage.now.dport))
    passage.ports = tuple(target.ports for target in targets)
    passage.settle(Fate.REWRITTEN, text)
    return Verdict.REWRITES, text


def _unruled(passage: Passage, why: str) -> Account:
    """Tell what becomes of a source that nothing rewrites: kept if free, else moved wherever the kernel finds room."""
    if passage.situation.holder_of(passage.now) is None:
        kept = f"{why}: it keeps its source {passage.now.source}"
        if passage.fate is not Fate.SENT_ON:
            passage.settle(Fate.KEPT if passage.origin is Origin.LOCAL else Fate.UNCHANGED, kept)
        return Verdict.PASSES, kept
    anywhere = null_binding_range(passage.now)
    chosen = choose_port(passage.now, passage.now.src, anywhere, passage.situation)
    _take(passage, passage.now.src, chosen)
    word = "id" if passage.now.has_echo_id else "port"
    text = f"{why}, and {word} {passage.packet.tuple.sport} is taken: the kernel moves it to one of {anywhere}"
    passage.settle(Fate.LEAKED, text)
    return Verdict.REWRITES, text


def _take(passage: Passage, address: Address, chosen: PortChoice) -> None:
    """Put the packet where NAT puts it; which port it gets may be known, or be any of the range."""
    port = passage.now.sport if chosen.port is None else chosen.port
    passage.leave_from(FlowTuple(passage.now.protocol, address, port, passage.now.dst, passage.now.dport))
    if chosen.port is None:
        passage.ports = (chosen.ports,)


def _place(chosen: PortChoice) -> str:
    return str(chosen.port) if chosen.port is not None else f"one of {chosen.ports} ({chosen.room})"


def _how(chosen: PortChoice) -> str:
    match chosen.choice:
        case Choice.KEPT:
            return f"{chosen.port} is free and kept"
        case Choice.REUSED:
            return f"{chosen.port}, which its source port has towards other destinations"
        case _:
            return str(chosen.port) if chosen.port is not None else chosen.room
