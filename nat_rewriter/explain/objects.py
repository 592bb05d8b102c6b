"""An explanation as one JSON object with stable field names."""

from __future__ import annotations

from typing import Any

from nat_rewriter.explain.explanation import Explanation
from nat_rewriter.explain.matching import Match, Target, Trial
from nat_rewriter.explain.outcomes import ModeOutcome
from nat_rewriter.explain.passage import Outcome, Step
from nat_rewriter.explain.ports import PortChoice
from nat_rewriter.explain.situation import SeenSocket, is_rewritten
from nat_rewriter.model.flows import Flow
from nat_rewriter.report.flows import flow_object
from nat_rewriter.report.json_lines import tuple_object, without_absent


def explanation_object(one: Explanation) -> dict[str, Any]:
    """Return an explanation as `explain --json` prints it; absent fields are left out."""
    packet = one.subject.packet
    fields = {
        "protocol": packet.tuple.protocol,
        "tuple": tuple_object(packet.tuple),
        "kind": one.subject.kind.value,
        "turned": one.subject.turned or None,
        "iifname": packet.iifname,
        "oifname": packet.oifname,
        "mark": packet.mark,
        "slice": one.owner.name if one.owner else None,
        "wire": tuple_object(one.wire) if one.wire else None,
        "holders": _holders(one),
        "snat": _snat(one),
        "dnat": _dnat(one),
        "proxies": _proxies(one),
        "coexist": one.coexist.value,
        "guard": one.guard.value,
        "table": one.situation.table.value,
        "modes": {mode.coexist.value: _mode(mode) for mode in one.modes},
        "unanswered": list(one.situation.unanswered),
    }
    return without_absent(fields)


def _holders(one: Explanation) -> dict[str, Any]:
    asked = one.situation
    claim = asked.claim
    return without_absent(
        {
            "flows": None if asked.flows is None else [_flow(one, flow) for flow in one.flows],
            "sockets": None if asked.sockets is None else [_socket(each) for each in one.sockets],
            "another_socket": list(one.another_socket) or None,
            "claim": without_absent({"timeout_s": claim.timeout_s, "expires_s": claim.expires_s}) if claim else None,
        }
    )


def _flow(one: Explanation, flow: Flow) -> dict[str, Any]:
    return {"type": one.flow_type(flow), **flow_object(flow), "rewritten": is_rewritten(flow)}


def _socket(each: SeenSocket) -> dict[str, Any]:
    peer = {} if each.peerless else {"dst": str(each.dst), "dport": each.dport}
    owner = {"pid": each.owner.pid, "command": each.owner.command} if each.owner else {}
    return {
        "state": each.state, "src": str(each.src), "sport": each.sport, **peer, "inode": each.inode, "uid": each.uid,
        **owner,
    }  # fmt: skip


def _snat(one: Explanation) -> dict[str, Any]:
    decided = one.deciding
    takes = decided is not None and decided.match in (Match.TAKES, Match.UNCERTAIN)
    return without_absent(
        {
            "rule": decided.rule.name if decided and takes else None,
            "spread": decided.rule.spread.value if decided and takes and len(one.targets) > 1 else None,
            "target": _target(one.target) if one.target else None,
            "port": _port(one.port) if one.port else None,
            "ranges": [_target(each) | {"share": float(each.share)} for each in one.targets] or None,
            "tried": [_trial(each) for each in one.trials] or None,
            "rewriters": [{"rule": rule.name, **_target(target)} for rule, target in one.rewriters] or None,
        }
    )


def _target(target: Target) -> dict[str, Any]:
    return {"slice": target.slice.name, "address": str(target.address), "range": str(target.ports)}


def _port(port: PortChoice) -> dict[str, Any]:
    fields = {"choice": port.choice.value, "port": port.port, "free": port.free, "size": len(port.ports)}
    return without_absent(fields | {"ending": port.ending or None})


def _trial(trial: Trial) -> dict[str, Any]:
    return {"rule": trial.rule.name, "match": trial.match.value, "reason": trial.reason}


def _dnat(one: Explanation) -> dict[str, Any] | None:
    if one.dnat is None:
        return None
    rule, to = one.dnat
    return {"rule": rule.name, "dst": str(to.dst), "dport": to.dport}


def _proxies(one: Explanation) -> list[dict[str, Any]] | None:
    taken: list[dict[str, Any]] = [
        {
            "proxy": each.proxy.name,
            "does": "takes-in",
            "listen": str(each.endpoint),
            "only_where": each.only_where or None,
        }
        for each in one.taken_in
    ]
    connecting = [{"proxy": proxy.name, "does": "connects-from"} for proxy in one.connecting]
    return [without_absent(each) for each in (*taken, *connecting)] or None


def _mode(mode: ModeOutcome) -> dict[str, Any]:
    return without_absent(
        {
            "socket": _outcome(mode.socket),
            "forwarded": _outcome(mode.forwarded),
            "inbound": _outcome(mode.inbound) if mode.inbound else None,
        }
    )


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "outcome": outcome.fate.value,
        "text": outcome.text,
        "tuple": tuple_object(outcome.wanted),
        "ports": [str(ports) for ports in outcome.ports],
        "hooks": [_step(step) for step in outcome.steps],
    }


def _step(step: Step) -> dict[str, Any]:
    fields = {"hook": step.hook, "priority": step.priority, "station": step.station}
    return without_absent(fields | {"verdict": step.verdict.value, "does": step.does})
