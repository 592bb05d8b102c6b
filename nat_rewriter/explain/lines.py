"""An explanation as lines of text for a person: spans of text, each with a style."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from operator import attrgetter

from nat_rewriter.explain.explanation import Explanation, Kind
from nat_rewriter.explain.matching import Match, Target
from nat_rewriter.explain.outcomes import ModeOutcome
from nat_rewriter.explain.passage import Fate, Outcome, Step, Verdict
from nat_rewriter.explain.proxying import Taking, onward_text
from nat_rewriter.explain.situation import SeenSocket, Table
from nat_rewriter.model.flows import Flow, Status
from nat_rewriter.model.policy import Guard
from nat_rewriter.model.tuples import endpoint_text


class Style(enum.Enum):
    """How a span looks on a terminal."""

    PLAIN = "plain"
    TITLE = "title"
    DIM = "dim"
    GOOD = "good"
    CHANGED = "changed"
    BAD = "bad"


Span = tuple[str, Style]
Line = tuple[Span, ...]

_FATES = {
    Fate.MOVED: Style.CHANGED,
    Fate.REWRITTEN: Style.GOOD,
    Fate.KEPT: Style.GOOD,
    Fate.CONTINUES: Style.GOOD,
    Fate.SENT_ON: Style.GOOD,
    Fate.PROXIED: Style.GOOD,
    Fate.DELIVERED: Style.GOOD,
    Fate.AVOIDS: Style.GOOD,
    Fate.REFUSED: Style.CHANGED,
    Fate.LEAKED: Style.BAD,
    Fate.DROPPED: Style.BAD,
    Fate.EXHAUSTED: Style.BAD,
    Fate.TAKES_ANYWAY: Style.BAD,
}
_VERDICTS = {
    Verdict.PASSES: ("·", Style.DIM),
    Verdict.RECORDS: ("+", Style.PLAIN),
    Verdict.REWRITES: ("→", Style.CHANGED),
    Verdict.REFUSES: ("✗", Style.BAD),
    Verdict.DROPS: ("✗", Style.BAD),
}
_MARKS = {
    Match.TAKES: ("✓", Style.GOOD),
    Match.EXCLUDES: ("✗", Style.CHANGED),
    Match.WAITS: ("✗", Style.BAD),
    Match.DIFFERS: ("·", Style.DIM),
    Match.UNCERTAIN: ("?", Style.CHANGED),
    Match.NOT_REACHED: ("·", Style.DIM),
}
_TABLES = {
    Table.DIFFERS: "The live table is not what the configuration means, on which all this rests: see natctl diff.",
    Table.ABSENT: "The table is not in the kernel: this is what the configuration would do, see natctl apply.",
}

_GUARDS = {
    Guard.DROP: "what leaves a soft-unicast address outside its slices is recorded, counted and dropped",
    Guard.COUNT: "what leaves a soft-unicast address outside its slices is recorded and counted, and leaves",
    Guard.OFF: "what leaves a soft-unicast address outside its slices is not looked at",
}
_MOST_RANGES = 8
_SOCKET, _FORWARDED, _INBOUND = attrgetter("socket"), attrgetter("forwarded"), attrgetter("inbound")


def explanation_lines(one: Explanation) -> Iterator[Line]:
    """Yield an explanation line by line."""
    yield from _head(one)
    yield from _holders(one)
    yield from _rules(one)
    yield from _modes(one)
    for title, outcome in _pictures(one):
        yield from _picture(f"{title}, with coexist = {one.coexist.value}", outcome)
    yield from _notes(one)


def _title(text: str) -> Iterator[Line]:
    yield ()
    yield ((text, Style.TITLE),)


def _plain(text: str, style: Style = Style.PLAIN) -> Line:
    return ((text, style),)


def _head(one: Explanation) -> Iterator[Line]:
    packet = one.subject.packet
    wanted = packet.tuple
    yield _plain(f"{wanted.protocol} {wanted.source} -> {wanted.destination}", Style.TITLE)
    if one.subject.turned:
        yield _plain("  given as a packet to the slice, explained from the slice")
    yield _plain(f"  {_what(one)}")
    ways = [f"in by {packet.iifname}" if packet.iifname else "", f"out by {packet.oifname}" if packet.oifname else ""]
    ways += [f"mark {packet.mark:#x}" if packet.mark else ""]
    if any(ways):
        yield _plain(f"  {', '.join(way for way in ways if way)}")


def _what(one: Explanation) -> str:
    wanted = one.subject.packet.tuple
    if one.subject.kind is Kind.CLIENT:
        return "as a client sends it: its source is no soft-unicast address"
    if one.owner is None:
        return f"from a soft-unicast address, but {wanted.source} is in no slice of this host"
    kept = any(wanted.sport in ports for ports in one.owner.socket_ranges)
    return f"on the wire, from slice {one.owner.name}" + (", on a port that is kept for sockets" if kept else "")


def _holders(one: Explanation) -> Iterator[Line]:
    yield from _title("Held by")
    asked = one.situation
    for flow in one.flows:
        yield _plain(f"  {_flow_text(one, flow)}")
    for socket in one.sockets:
        yield _plain(f"  {_socket_text(socket)}")
    if one.another_socket:
        yield _plain(f"    another socket gets {' or '.join(one.another_socket)}", Style.DIM)
    if asked.claim:
        left = "" if asked.claim.expires_s is None else f", {asked.claim.expires_s} s left"
        yield _plain(f"  a claim of rewriting{left}")
    if not (one.flows or one.sockets or asked.claim):
        unknown = asked.flows is None or asked.sockets is None
        yield _plain("  nobody, as far as could be asked" if unknown else "  nobody", Style.DIM)


def _flow_text(one: Explanation, flow: Flow) -> str:
    kind = {"local-flow": "a local flow", "nat-flow": "a NAT flow"}.get(one.flow_type(flow), "a flow")
    state = flow.state or ("answered" if flow.status & Status.SEEN_REPLY else "UNREPLIED")
    wire = flow.reply.reversed()
    parts = [f"{kind}, conntrack entry {flow.id}, {state}"]
    parts += [f"{flow.timeout_s} s left"] if flow.timeout_s is not None else []
    way = f"{flow.original.source} -> {flow.original.destination}"
    changed = f", on the other side {wire.source} -> {wire.destination}" if wire != flow.original else ""
    return f"{', '.join(parts)}: {way}{changed}"


def _socket_text(socket: SeenSocket) -> str:
    owner = f"{socket.owner.command} (pid {socket.owner.pid})" if socket.owner else f"uid {socket.uid}"
    own = endpoint_text(socket.src, socket.sport)
    peer = "" if socket.peerless else f" -> {endpoint_text(socket.dst, socket.dport)}"
    return f"a socket of {owner}, {socket.state}: {own}{peer}"


def _rules(one: Explanation) -> Iterator[Line]:
    yield from _title("Rewriting")
    if one.subject.kind is Kind.WIRE:
        yield from _rewriters(one)
        return
    yield from (_plain(f"  {_taking_text(taking)}") for taking in one.taken_in)
    width = max((len(trial.rule.name) for trial in one.trials), default=0)
    for trial in one.trials:
        mark, style = _MARKS[trial.match]
        yield (f"  {mark} ", style), (f"[[snat]] {trial.rule.name:{width}}  ", Style.PLAIN), (trial.reason, style)
    if one.deciding is None:
        yield _plain("  no [[snat]] rule takes it")
    yield from _ranges(one)


def _ranges(one: Explanation) -> Iterator[Line]:
    shown = [target for number, target in enumerate(one.targets) if number < _MOST_RANGES or _is_chosen(one, target)]
    for target in shown:
        chosen = _is_chosen(one, target)
        room = ""
        if chosen and one.port:
            room = f": {one.port.room}"
        share = f" ({float(target.share):.0%} of its flows)" if len(one.targets) > 1 else ""
        style = Style.GOOD if chosen else Style.DIM if one.target else Style.PLAIN
        yield _plain(f"    {'→' if chosen else ' '} {_target_text(target)}{share}{room}", style)
    if len(shown) < len(one.targets):
        yield _plain(f"      and {len(one.targets) - len(shown)} more, which --json lists", Style.DIM)
    if len(one.targets) > 1 and one.deciding:
        how = {"client": "a hash of its source address", "flow": "a hash of the flow", "random": "chance"}
        yield _plain(f"      chosen by {how[one.deciding.rule.spread.value]}", Style.DIM)


def _is_chosen(one: Explanation, target: Target) -> bool:
    return one.target is not None and (target.ports, target.slice) == (one.target.ports, one.target.slice)


def _rewriters(one: Explanation) -> Iterator[Line]:
    for rule, target in one.rewriters:
        yield _plain(f"  [[snat]] {rule.name} may rewrite flows into it: {_target_text(target)}")
    if not one.rewriters:
        yield _plain("  no [[snat]] rule rewrites into it")
    wanted = one.subject.packet.tuple
    if one.dnat:
        dnat, to = one.dnat
        yield _plain(f"  [[dnat]] {dnat.name} sends unsolicited packets to {wanted.source} on to {to.destination}")
    else:
        yield _plain(f"  no [[dnat]] rule takes unsolicited packets to {wanted.source}")
    for proxy in one.connecting:
        yield _plain(f"  [[proxy]] {proxy.name} may connect from it, as a local socket does")


def _taking_text(taking: Taking) -> str:
    text = f"[[proxy]] {taking.proxy.name} takes it in at {taking.endpoint} and {onward_text(taking.proxy)}"
    return f"{text}, where {taking.only_where}" if taking.only_where else f"{text}: nothing is rewritten"


def _target_text(target: Target) -> str:
    return f"slice {target.slice.name}, {target.address} {target.ports}"


def _modes(one: Explanation) -> Iterator[Line]:
    wanted = one.configured.socket.wanted
    wire = one.subject.kind is Kind.WIRE
    expected = not wire and one.wire is None and wanted != one.subject.packet.tuple
    then = "what this flow will have, as " if expected else ""
    yield from _by_mode(one, f"A local socket that wants {then}{wanted.source} -> {wanted.destination}", _SOCKET)
    yield from _by_mode(one, "A forwarded flow that wants it" if wire else "A forwarded packet", _FORWARDED)
    if wire:
        yield from _by_mode(one, "An unsolicited packet to it", _INBOUND)
    yield ()
    yield _plain(f"guard = {one.guard.value}: {_GUARDS[one.guard]}", Style.DIM)


def _by_mode(one: Explanation, title: str, of: Callable[[ModeOutcome], Outcome | None]) -> Iterator[Line]:
    yield from _title(title)
    before = None
    for mode in one.modes:
        outcome = of(mode)
        if outcome is None:
            continue
        here = mode.coexist is one.coexist
        yield (
            (f"  {'→' if here else ' '} {mode.coexist.value:8}", Style.TITLE if here else Style.DIM),
            (f"{outcome.fate.value.replace('-', ' '):13}", _FATES.get(outcome.fate, Style.PLAIN)),
            ("the same" if outcome.text == before else outcome.text, Style.PLAIN if here else Style.DIM),
        )
        before = outcome.text


def _pictures(one: Explanation) -> Iterator[tuple[str, Outcome]]:
    yield "The way of the socket's packet", one.configured.socket
    yield "The way of the forwarded packet", one.configured.forwarded
    if one.configured.inbound and (one.subject.turned or one.dnat):
        yield "The way of the unsolicited packet", one.configured.inbound


def _picture(title: str, outcome: Outcome) -> Iterator[Line]:
    if not outcome.steps:
        return
    yield from _title(title)
    before = ""
    for step in outcome.steps:
        yield _step_line(step, "" if step.hook == before else step.hook)
        before = step.hook


def _step_line(step: Step, hook: str) -> Line:
    mark, style = _VERDICTS[step.verdict]
    priority = "" if step.priority is None else str(step.priority)
    name = "" if step.station in ("begin", "end", step.hook) else step.station
    return (
        (f"  {hook:12}", Style.TITLE),
        (f"{priority:>5} ", Style.DIM),
        (f"{name:11}", Style.PLAIN),
        (f"{mark} ", style),
        (step.does, style if style is not Style.DIM else Style.PLAIN),
    )


def _notes(one: Explanation) -> Iterator[Line]:
    notes = [_TABLES[one.situation.table]] if one.situation.table in _TABLES else []
    notes += [f"Could not be asked: {text}" for text in one.situation.unanswered]
    if one.situation.flows is None:
        notes.append("Without conntrack every tuple is taken to be free.")
    if notes:
        yield ()
        yield from (_plain(note, Style.CHANGED) for note in notes)
