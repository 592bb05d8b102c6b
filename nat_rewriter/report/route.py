"""How routes stand, and what was done to them, as JSON and as lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from nat_rewriter.model.route import EarlyDemux
from nat_rewriter.model.routing import (
    LOCAL_TABLE,
    AddRoute,
    AddRule,
    DeleteRoute,
    DeleteRule,
    DeleteTable,
    LoadTable,
    RoutingView,
    Rule,
    SetSysctl,
    Step,
    TunnelRoute,
)
from nat_rewriter.report.json_lines import without_absent

_TABLES = {255: "local", 254: "main", 253: "default"}
_COUNTED = {
    "sent": "packets of the tunnel",
    "replies": "replies to the tunnel",
    "passed": "packets to the addresses of the slices left to sockets",
    "forwarded": "replies that were forwarded",
}


def rule_text(rule: Rule) -> str:
    """Return a rule as ``ip rule`` writes it."""
    mark = f" fwmark {rule.mark:#x}/{rule.mask:#x}" if rule.mask else ""
    return f"{rule.priority}: from all{mark} lookup {_TABLES.get(rule.table, rule.table)}"


def route_text(route: TunnelRoute) -> str:
    """Return a route as ``ip route`` writes it."""
    via = f" via {route.via}" if route.via else ""
    return f"{route.address}{via} dev {route.device} table {route.table}"


def step_text(step: Step) -> str:
    """Return what a step does, as a line."""
    match step:
        case AddRule(rule):
            return f"add rule (IPv{rule.family}) {rule_text(rule)}"
        case DeleteRule(rule):
            return f"delete rule (IPv{rule.family}) {rule_text(rule)}"
        case AddRoute(route):
            return f"add route {route_text(route)}"
        case DeleteRoute(route):
            return f"delete route {route_text(route)}"
        case SetSysctl(name, value):
            return f"set {name} = {value}"
        case LoadTable(family, name, _):
            return f"load table {family} {name}"
        case DeleteTable(name):
            return f"delete table {name}"


def steps_object(steps: Iterable[Step]) -> dict[str, Any]:
    """Return what ``route apply --json`` and ``remove --json`` print."""
    done = [step_text(step) for step in steps]
    return {"changed": bool(done), "steps": done}


def view_object(view: RoutingView) -> dict[str, Any]:
    """Return what ``route show --json`` prints."""
    route = view.route
    return {
        "state": view.state,
        "tunnel": route.tunnel,
        "outer": list(route.outer),
        "early_demux": route.early_demux.value,
        "mark": route.mark,
        "mask": route.mask,
        "routing_table": route.table,
        "missing": [*(f"device {name}" for name in view.missing_devices), *map(step_text, view.pending)],
        "rules": [_rule_object(rule) for rule in view.rules],
        "routes": [route_text(one) for one in view.routes],
        "sysctls": [
            without_absent({"name": one.name, "value": one.value, "wanted": one.wanted, "before": one.before})
            for one in view.sysctls
        ],
        "table": view.table or None,
        "packets": view.packets,
        "tuples": view.tuples,
        "captured": {f"ipv{family}": count for family, count in view.captured.items()},
        "sockets": {"bound_to_device": view.bound, "bound_to_none": view.unbound},
    }


def view_lines(view: RoutingView) -> Iterator[str]:
    """Yield how a route stands, line by line."""
    route = view.route
    yield f"route from {route.tunnel}, replies from {', '.join(route.outer)}: {view.state}"
    yield from (f"  missing: there is no device {name}" for name in view.missing_devices)
    yield from (f"  missing: {step_text(step)}" for step in view.pending)
    yield f"mark {route.mark:#x}/{route.mask:#x}, routing table {route.table}"
    yield from (f"  route {route_text(one)}" for one in view.routes)
    yield from (f"  rule (IPv{rule.family}) {rule_text(rule)}{_whose(rule)}" for rule in view.rules)
    yield "sysctls"
    for one in view.sysctls:
        before = f" (before: {one.before})" if one.before not in (None, one.value) else ""
        needs = f", needs {one.wanted}" if one.value != one.wanted else ""
        yield f"  {one.name} = {one.value}{needs}{before}"
    yield from _answer_lines(view)


def _answer_lines(view: RoutingView) -> Iterator[str]:
    yield f"early demux: {view.route.early_demux.value}, table {view.table or 'absent'}"
    for name, packets in view.packets.items():
        yield f"  {packets} {_COUNTED[name[:-1]]} (IPv{name[-1]})"
    for name, count in view.tuples.items():
        yield f"  {count} tuples known (IPv{name[-1]})"
    for family, count in view.captured.items():
        if count:
            yield f"  {count} replies did not get through: a socket has their tuple (IPv{family})"
    if view.unbound and view.route.early_demux in (EarlyDemux.DEVICE, EarlyDemux.OFF):
        yield f"  {view.unbound} sockets on ports of the slices are bound to no device: they take what has their tuple"
    if view.bound:
        yield f"  {view.bound} sockets on ports of the slices are bound to a device"


def _whose(rule: Rule) -> str:
    return " (natctl)" if rule.own else ""


def _rule_object(rule: Rule) -> dict[str, Any]:
    mark = {"mark": rule.mark, "mask": rule.mask} if rule.mask else {}
    table = "local" if rule.table == LOCAL_TABLE else rule.table
    return {"family": rule.family, "priority": rule.priority, **mark, "table": table, "own": rule.own}
