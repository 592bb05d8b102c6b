"""What each station says to a packet: conntrack, and every base chain of the rendered table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from nat_rewriter.explain.matching import dnat_of, slice_of, within
from nat_rewriter.explain.passage import Fate, Passage, Verdict
from nat_rewriter.explain.ports import ranges_text
from nat_rewriter.explain.proxying import at_proxy_redirect, at_proxy_tproxy
from nat_rewriter.explain.situation import PROTOCOLS
from nat_rewriter.explain.source_nat import Account, at_srcnat, is_claimed
from nat_rewriter.model.flows import Origin, Status
from nat_rewriter.model.policy import Guard, Policy, SnatRule, Timestamps
from nat_rewriter.model.slices import PortRange
from nat_rewriter.model.tuples import FlowTuple
from nat_rewriter.render.parts import Parts


def at_conntrack(passage: Passage) -> Account:
    """Tell whether the packet belongs to an entry or begins one."""
    if passage.candidate is not None:
        return Verdict.PASSES, f"a client's packet to {passage.now.destination} begins a flow"
    if passage.ended_entry is not None:
        return Verdict.PASSES, f"entry {passage.ended_entry.id} is over and makes way: the packet begins a flow"
    if passage.entry is None:
        return Verdict.PASSES, "no entry has this tuple: the packet begins a flow"
    passage.settle(Fate.CONTINUES, f"continues entry {passage.entry.id}")
    side = "original" if passage.entry.original == passage.packet.tuple else "reply"
    return Verdict.PASSES, f"belongs to entry {passage.entry.id}, {side} direction"


def at_dstnat(passage: Passage) -> Account:
    """Tell what becomes of the destination of an arriving packet."""
    if passage.entry is not None:
        there = passage.translated
        if (there.dst, there.dport) == (passage.now.dst, passage.now.dport):
            return Verdict.PASSES, "its entry leaves the destination as it is"
        passage.now = replace(passage.now, dst=there.dst, dport=there.dport)
        passage.settle(passage.fate, f"{passage.reason}, which goes on to {there.destination}")
        return Verdict.REWRITES, f"its entry rewrites the destination to {passage.now.destination}"
    found = dnat_of(passage.policy, passage.now)
    if found is None:
        return Verdict.PASSES, "no [[dnat]] rule takes it"
    rule, passage.now = found
    passage.settle(Fate.SENT_ON, f"[[dnat]] {rule.name} sends it on to {passage.now.destination}")
    return Verdict.REWRITES, passage.reason


def at_arriving(passage: Passage) -> Account:
    """Tell how long conntrack will keep a flow to a slice, and that its claim is renewed."""
    if not passage.to_soft:
        return Verdict.PASSES, "not for a soft-unicast address"
    return _claiming(passage) if passage.entry is not None else (Verdict.PASSES, _timeouts(passage))


def at_leaving(passage: Passage) -> Account:
    """Tell how long conntrack will keep a flow from a slice, and that its tuple is claimed."""
    if not passage.from_soft:
        return Verdict.PASSES, "not from a soft-unicast address"
    rewritten = passage.candidate is not None or passage.now != passage.packet.tuple
    if passage.entry is not None:
        return _claiming(passage)
    if rewritten and _claims(passage):
        return Verdict.RECORDS, "its tuple on the wire is claimed for as long as the entry lives"
    return Verdict.PASSES, _timeouts(passage)


def _claiming(passage: Passage) -> Account:
    rewritten = passage.entry is not None and bool(passage.entry.status & (Status.SRC_NAT | Status.DST_NAT))
    if rewritten and _claims(passage):
        return Verdict.RECORDS, "its claim is renewed with the entry"
    return Verdict.PASSES, "its entry has its timeouts"


def _claims(passage: Passage) -> bool:
    return Parts.of(passage.policy).claims and not passage.now.has_echo_id


def _timeouts(passage: Passage) -> str:
    own = Parts.of(passage.policy).timeouts and not passage.now.has_echo_id
    return "the flow gets the timeouts of slices" if own else "nothing to record"


def at_refuse_out(passage: Passage) -> Account:
    """Tell whether a local socket may have the tuple it wants."""
    if passage.entry is not None:
        return Verdict.PASSES, "what belongs to an entry is not refused"
    if passage.now.has_echo_id:
        return Verdict.PASSES, "echo ids are not refused"
    if Parts.of(passage.policy).split:
        return _kept_for_rewriting(passage, passage.now.reversed(), passage.now.sport)
    if not is_claimed(passage):
        return Verdict.PASSES, "no rewritten flow has claimed the tuple"
    passage.settle(Fate.REFUSED, f"refused at once: {_error(passage)}, a rewritten flow holds the tuple", end=True)
    return Verdict.REFUSES, f"a rewritten flow has claimed the tuple: {_error(passage)}"


def at_refuse_in(passage: Passage) -> Account:
    """Tell whether an unsolicited packet may reach a socket on its port."""
    if passage.entry is not None:
        return Verdict.PASSES, "what belongs to an entry is not refused"
    if passage.now.has_echo_id:
        return Verdict.PASSES, "echo ids are not refused"
    return _kept_for_rewriting(passage, passage.now, passage.now.dport)


def _kept_for_rewriting(passage: Passage, inbound: FlowTuple, port: int) -> Account:
    owned = slice_of(passage.policy.slices, inbound.dst, port, inbound.protocol)
    if owned is None or not any(port in ports for ports in owned.rewrite_ranges):
        return Verdict.PASSES, f"port {port} is not one for rewriting only"
    text = f"port {port} of slice {owned.name} is for rewriting only"
    passage.settle(Fate.REFUSED, f"refused at once: {_error(passage)}, {text}", end=True)
    return Verdict.REFUSES, f"{text}: {_error(passage)}"


def _error(passage: Passage) -> str:
    if passage.now.protocol == "tcp":
        return "a TCP reset (ECONNREFUSED)"
    # The datagram is lost on its way out, and the answer to it lies ready in the socket.
    local = passage.origin is Origin.LOCAL
    return (
        "port unreachable (send() fails with EPERM, the next call with ECONNREFUSED)" if local else "port unreachable"
    )


def at_timestamps(passage: Passage) -> Account:
    """Tell whether a forwarded SYN loses its timestamp option."""
    if passage.now.protocol != "tcp":
        return Verdict.PASSES, "not TCP"
    stripping = [rule for rule in passage.policy.snat if rule.timestamps is Timestamps.STRIP]
    chosen = [rule for rule in stripping if rule is passage.candidate or _strips(rule, passage)]
    if not chosen:
        return Verdict.PASSES, "the timestamp option stays"
    return Verdict.REWRITES, f"[[snat]] {chosen[0].name}: a SYN loses its timestamp option"


def _strips(rule: SnatRule, passage: Passage) -> bool:
    if passage.candidate is not None:
        return False
    packet = passage.current()
    named = ((rule.iifname, packet.iifname), (rule.oifname, packet.oifname))
    networks = ((rule.source, packet.tuple.src), (rule.destination, packet.tuple.dst))
    return (
        all(not wanted or actual in wanted for wanted, actual in named)
        and (rule.mark is None or rule.mark == packet.mark)
        and all(not wanted or within(wanted, address) for wanted, address in networks)
    )


def at_guard(passage: Passage) -> Account:
    """Tell whether the packet leaves a soft-unicast address outside its slices."""
    if passage.packet.oifname == "lo":
        return Verdict.PASSES, "stays on this host"
    if not passage.from_soft:
        return Verdict.PASSES, "not from a soft-unicast address"
    if is_owned(passage.policy, passage.now, passage.ports):
        return Verdict.PASSES, "inside its slice"
    if _answers_a_client(passage):
        return Verdict.PASSES, "came in as the answer to a client that was rewritten"
    word = "id" if passage.now.has_echo_id else "port"
    where = f"{word} {ranges_text(passage.ports)} is outside every slice"
    if passage.policy.controller.guard is Guard.COUNT:
        passage.settle(Fate.LEAKED, _leak_reason(passage, "counted by the guard, and leaves the slice"))
        return Verdict.RECORDS, f"{where}: recorded, counted, and let go"
    passage.settle(Fate.DROPPED, _leak_reason(passage, f"dropped by the guard, {passage.lost}"), end=True)
    return Verdict.DROPS, f"{where}: recorded, counted and dropped"


def _answers_a_client(passage: Passage) -> bool:
    """Tell whether the packet came in, and belongs to a flow of which the client alone was rewritten, into a slice."""
    entry = passage.entry
    if entry is None or entry.original == passage.packet.tuple or passage.origin is not Origin.FORWARDED:
        return False
    into_soft = any(owned.address == entry.reply.dst for owned in passage.policy.slices)
    return into_soft and entry.status & (Status.SRC_NAT | Status.DST_NAT) == Status.SRC_NAT


def _leak_reason(passage: Passage, end: str) -> str:
    moved = passage.now.sport != passage.packet.tuple.sport or len(passage.ports[0]) > 1
    return f"{passage.reason}: {end}" if moved else f"{passage.now.source} is outside every slice: {end}"


def is_owned(policy: Policy, packet: FlowTuple, ports: tuple[PortRange, ...]) -> bool:
    """Tell whether a soft-unicast source, wherever in some ranges its port lies, is one of this host."""
    wanted = PROTOCOLS[packet.protocol]
    held = [
        ports
        for owned in policy.slices
        if owned.address == packet.src and wanted in owned.protocols
        for ports in owned.ranges
    ]
    return all(any(one.first in each and one.last in each for each in held) for one in ports)


Accountant = Callable[[Passage], Account]

# Every base chain that the templates have; a test compares the two.
CHAINS: Mapping[str, Accountant] = {
    "proxy_tproxy": at_proxy_tproxy,
    "proxy_redirect": at_proxy_redirect,
    "arriving": at_arriving,
    "dstnat": at_dstnat,
    "refuse_in": at_refuse_in,
    "refuse_out": at_refuse_out,
    "timestamps": at_timestamps,
    "srcnat": at_srcnat,
    "leaving": at_leaving,
    "guard": at_guard,
}
