"""What has to change so that the kernel routes as configured, and so that it does as before; nothing here acts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from nat_rewriter.model.policy import Policy
from nat_rewriter.model.route import EarlyDemux, Route
from nat_rewriter.model.routing import (
    FAMILIES,
    LOCAL_TABLE,
    AddRoute,
    AddRule,
    DeleteRoute,
    DeleteRule,
    DeleteTable,
    Kept,
    Live,
    LoadTable,
    Rule,
    SetSysctl,
    Step,
    TunnelRoute,
)
from nat_rewriter.model.slices import Protocol
from nat_rewriter.render.route import RouteTable, render_route

FORWARDING_6 = "net.ipv6.conf.all.forwarding"
FIRST_PRIORITY = 0  # of the local table's rule, unless somebody moved it


@dataclass(frozen=True, slots=True)
class Wanted:
    """All that a route asks of the kernel. Empty, it asks for nothing of natctl's to be there."""

    rules: tuple[Rule, ...] = ()
    routes: tuple[TunnelRoute, ...] = ()
    sysctls: Mapping[str, str] | None = None
    table: RouteTable | None = None
    move_local: tuple[int, ...] = ()  # families in which the local table's rule comes after natctl's own
    priority: int = -1  # of natctl's own rule: rules of the local table up to there are in its way


def wanted_of(route: Route, policy: Policy, live: Live, kept: Kept) -> Wanted:
    """Return what a route asks for, in a kernel that is as it is."""
    moved = tuple(family for family in route.families if _has_to_move(route, family, live, kept))
    rules = [Rule(family, route.priority, route.table, route.mark, route.mask, own=True) for family in route.families]
    rules += [Rule(family, route.local_priority, LOCAL_TABLE, own=True) for family in moved]
    return Wanted(
        tuple(rules),
        tuple(TunnelRoute(route.table, one, route.tunnel, route.gateway(one.version)) for one in route.addresses),
        wanted_sysctls(route),
        render_route(route, policy.controller.table),
        moved,
        route.priority,
    )


def _has_to_move(route: Route, family: int, live: Live, kept: Kept) -> bool:
    """Tell whether the local table would be looked up before natctl's, or is so no more by natctl's doing alone."""
    others = [rule.priority for rule in live.rules if rule.family == family and rule.is_local and not rule.own]
    return not others or min(others) <= route.priority or bool(kept.locals.get(family))


def wanted_sysctls(route: Route) -> dict[str, str]:
    """Return the sysctls that a route needs, by name."""
    found: dict[str, str] = {}
    if 4 in route.families:
        tunnel = f"net.ipv4.conf.{sysctl_name(route.tunnel)}"
        # The reverse path of a marked packet is natctl's table, where its source lies behind the tunnel: so it passes
        # also where rp_filter is strict. (fib_validate_source() in net/ipv4/fib_frontend.c)
        found |= {f"{tunnel}.accept_local": "1", f"{tunnel}.src_valid_mark": "1", f"{tunnel}.forwarding": "1"}
        found |= {f"net.ipv4.conf.{sysctl_name(name)}.forwarding": "1" for name in route.outer}
    if 6 in route.families:
        found[FORWARDING_6] = "1"
    if route.early_demux is EarlyDemux.SYSCTL:  # both are for IPv6 as well
        found |= {"net.ipv4.tcp_early_demux": "0", "net.ipv4.udp_early_demux": "0"}
    return found


def sysctl_name(device: str) -> str:
    """Return how a device is written in the name of a sysctl: a dot in it becomes a slash."""
    return device.replace(".", "/")


def plan_routing(wanted: Wanted, live: Live, kept: Kept) -> list[Step]:
    """Return the steps from what is to what is wanted, none where they are equal.

    What is needed comes before what uses it, and every rule that is made comes before any that goes: there is no
    moment without a rule for the local table.
    """
    return [
        *_sysctl_steps(wanted.sysctls or {}, live, kept),
        *(AddRoute(route) for route in wanted.routes if route not in live.routes),
        *_rule_steps(wanted, live, kept),
        *(DeleteRoute(route) for route in live.routes if not _replaced(route, wanted)),
        *_table_steps(wanted.table, live, kept),
    ]


def plan_return(live: Live, kept: Kept, name: str) -> list[Step]:
    """Return the steps that take all of natctl's away and bring back what was there before.

    The nft table goes first: what it marks and hands on would have nowhere to go.
    """
    table = [DeleteTable(name)] if live.table_family else []
    return [
        *table,
        *_rule_steps(Wanted(), live, kept),
        *(DeleteRoute(route) for route in live.routes),
        *_sysctl_steps({}, live, kept),
    ]


def keep(wanted: Wanted, route: Route, live: Live, kept: Kept) -> Kept:
    """Return what has to be written down before the steps are taken, so that all can be brought back."""
    locals_ = dict(kept.locals) | {family: _locals_before(family, wanted, live, kept) for family in wanted.move_local}
    sysctls = dict(kept.sysctls)
    for name, value in (wanted.sysctls or {}).items():
        now = live.sysctls.get(name)
        before = kept.sysctls[name][0] if name in kept.sysctls and kept.sysctls[name][1] == now else now
        if before is not None:
            sysctls[name] = (before, value)
    text = wanted.table.text if wanted.table else ""
    listing = kept.listing if text == kept.text else ""
    return Kept(locals_, sysctls, text, listing, _covers(route))


def keep_finished(wanted: Wanted, kept: Kept, listing: str) -> Kept:
    """Return the same after the steps: without what was given back, and with how the kernel lists the table."""
    locals_ = {family: kept.locals[family] for family in wanted.move_local}
    sysctls = {name: values for name, values in kept.sysctls.items() if name in (wanted.sysctls or {})}
    return replace(kept, locals=locals_, sysctls=sysctls, listing=listing)


def find_overtaking(wanted: Wanted, live: Live) -> Rule | None:
    """Return a rule of somebody else that the local table's rule would come after, and does not now; None if none."""
    ends = {rule.family: rule.priority for rule in wanted.rules if rule.is_local}
    for rule in live.rules:
        if not rule.own and not rule.is_local and rule.priority <= ends.get(rule.family, -1):
            return rule
    return None


def _locals_before(family: int, wanted: Wanted, live: Live, kept: Kept) -> tuple[int, ...]:
    """Return where the local table's rules of others are, or were before natctl took them away."""
    there = {rule.priority for rule in live.rules if rule.family == family and _is_in_the_way(rule, wanted)}
    return tuple(sorted(there | set(kept.locals.get(family, ()))))


def _is_in_the_way(rule: Rule, wanted: Wanted) -> bool:
    """Tell whether a rule looks up the local table before natctl's own gets to see a packet."""
    moved = rule.family in wanted.move_local and rule.priority <= wanted.priority
    return moved and rule.is_local and not rule.own


def _covers(route: Route) -> tuple[tuple[str, str, int, int], ...]:
    """Return the ports whose replies to the tunnel are handed on before the IP layer."""
    if route.early_demux is not EarlyDemux.INGRESS:
        return ()
    return tuple(
        (str(owned.address), protocol.value, ports.first, ports.last)
        for owned in route.slices
        for protocol in owned.protocols
        if protocol is not Protocol.ICMP
        for ports in owned.ranges
    )


def _replaced(route: TunnelRoute, wanted: Wanted) -> bool:
    """Tell whether a route is wanted, or goes as another to the same address comes."""
    return any((route.table, route.address) == (one.table, one.address) for one in wanted.routes)


def _rule_steps(wanted: Wanted, live: Live, kept: Kept) -> Iterator[Step]:
    returning = [
        Rule(family, priority, LOCAL_TABLE)
        for family in FAMILIES
        if family not in wanted.move_local
        for priority in _to_return(family, live, kept)
    ]
    there = {_selection(rule) for rule in live.rules if rule.plain}
    yield from (AddRule(rule) for rule in (*returning, *wanted.rules) if _selection(rule) not in there)
    own = {_selection(rule) for rule in wanted.rules}
    for rule in live.rules:
        if (rule.own or _is_in_the_way(rule, wanted)) and _selection(rule) not in own:
            yield DeleteRule(rule)


def _to_return(family: int, live: Live, kept: Kept) -> tuple[int, ...]:
    """Return where rules of the local table have to be again: as kept, or at first where nothing else is known."""
    rules = [rule for rule in live.rules if rule.family == family and rule.is_local]
    if kept.locals.get(family):
        return kept.locals[family]
    return (FIRST_PRIORITY,) if any(rule.own for rule in rules) and all(rule.own for rule in rules) else ()


def _selection(rule: Rule) -> tuple[int, ...]:
    """Return what the kernel tells plain rules apart by."""
    return rule.family, rule.priority, rule.table, rule.mark, rule.mask


def _sysctl_steps(wanted: Mapping[str, str], live: Live, kept: Kept) -> Iterator[Step]:
    """Yield what is to be set, and of what is wanted no more the value before, unless somebody else has changed it."""
    for name, value in wanted.items():
        if live.sysctls.get(name) != value:
            yield SetSysctl(name, value)
    for name, (before, given) in kept.sysctls.items():
        if name not in wanted and live.sysctls.get(name) == given != before:
            yield SetSysctl(name, before)


def _table_steps(table: RouteTable | None, live: Live, kept: Kept) -> Iterator[Step]:
    if table is None:
        return
    same = kept.text == table.text and live.table_family == table.family and live.listing == kept.listing != ""
    if not same:
        yield LoadTable(*table)
