"""Routing of a tunnel's packets: put in place, mended after a crash, and taken away; one natctl at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nat_rewriter.controller.routing_plan import (
    Wanted,
    find_overtaking,
    keep,
    keep_finished,
    plan_return,
    plan_routing,
    wanted_of,
    wanted_sysctls,
)
from nat_rewriter.controller.routing_state import forget_kept, read_kept, write_kept
from nat_rewriter.errors import NatctlError, UsageError
from nat_rewriter.kernel.lock import table_lock
from nat_rewriter.kernel.route_table import RouteNft
from nat_rewriter.kernel.rules import RouteSocket, device_index
from nat_rewriter.kernel.sysctls import read_sysctl, write_sysctl
from nat_rewriter.model.generations import Place
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.route import EarlyDemux, Route
from nat_rewriter.model.routing import (
    AddRoute,
    AddRule,
    DeleteRoute,
    DeleteRule,
    DeleteTable,
    Kept,
    Live,
    LoadTable,
    SetSysctl,
    Step,
)
from nat_rewriter.render.route import route_table_name

_APPLY = "apply route"


@dataclass(frozen=True, slots=True)
class Kernel:
    """The edges that routing needs, all in one network namespace."""

    route: RouteSocket
    nft: RouteNft


@contextmanager
def held_routing(table: str, wait_s: float = 0.0) -> Iterator[Kernel]:
    """Hold the lock of a table's routing and have the kernel at hand."""
    with (
        table_lock(route_table_name(table), wait_s) as lock,
        RouteNft(holding=(lock.fileno(),)) as nft,
        RouteSocket() as route,
    ):
        yield Kernel(route, nft)


def route_of(policy: Policy) -> Route:
    """Return the route of a policy; raise UsageError where it has none."""
    if policy.route is None:
        raise UsageError("find route", "the configuration has no [route]: expected one with tunnel, outer and slices")
    return policy.route


def devices_of(route: Route) -> tuple[str, ...]:
    """Return the devices that a route needs."""
    return (route.tunnel, *route.outer, *((route.device,) if route.early_demux is EarlyDemux.DEVICE else ()))


def apply_route(policy: Policy, place: Place, wait_s: float = 0.0) -> list[Step]:
    """Make the kernel route as configured, and return what was done; empty where it did so before.

    Raises LockHeld, NatctlError for devices that do not exist and rules in the way (nothing is changed then), and
    KernelError for what the kernel refuses: what was done until then is done, and known to remove_route().
    """
    with held_routing(policy.controller.table, wait_s) as kernel:
        return apply_with(kernel, policy, place)


def apply_with(kernel: Kernel, policy: Policy, place: Place) -> list[Step]:
    """Do the same by the holder of the lock."""
    route, kept = route_of(policy), read_kept(place)
    live = read_live(kernel, policy, kept)
    _require_devices(route, live)
    wanted = wanted_of(route, policy, live, kept)
    if rule := find_overtaking(wanted, live):
        what = f"this rule of somebody else would come before the local table's, expected it after {rule.priority}"
        raise NatctlError(_APPLY, what, f"priority {rule.priority}, IPv{rule.family}")
    steps = plan_routing(wanted, live, kept)
    if steps:
        _take(steps, kernel, wanted, place, keep(wanted, route, live, kept))
    return steps


def _take(steps: list[Step], kernel: Kernel, wanted: Wanted, place: Place, kept: Kept) -> None:
    write_kept(place, kept)
    for step in steps:
        take_step(step, kernel)
    found = kernel.nft.find_table(wanted.table.name) if wanted.table else None
    write_kept(place, keep_finished(wanted, kept, found[1] if found else ""))


def remove_route(table: str, place: Place, wait_s: float = 0.0) -> list[Step]:
    """Take all of natctl's routing out of the kernel and bring back what was there before; return what was done."""
    with held_routing(table, wait_s) as kernel:
        return remove_with(kernel, table, place)


def remove_with(kernel: Kernel, table: str, place: Place) -> list[Step]:
    """Do the same by the holder of the lock."""
    kept = read_kept(place)
    name = route_table_name(table)
    steps = plan_return(_read_live(kernel, name, kept.sysctls, ()), kept, name)
    for step in steps:
        take_step(step, kernel)
    forget_kept(place)
    return steps


def read_live(kernel: Kernel, policy: Policy, kept: Kept) -> Live:
    """Return what the kernel has now, of all that a route and what is kept are about."""
    route = route_of(policy)
    sysctls = {*wanted_sysctls(route), *kept.sysctls}
    return _read_live(kernel, route_table_name(policy.controller.table), sysctls, devices_of(route))


def _read_live(kernel: Kernel, name: str, sysctls: Iterable[str], devices: Iterable[str]) -> Live:
    found = kernel.nft.find_table(name)
    indexes = {device: device_index(device) for device in devices}
    return Live(
        tuple(kernel.route.list_rules()),
        tuple(kernel.route.list_routes()),
        {name: read_sysctl(name) for name in sysctls},
        found[0] if found else None,
        found[1] if found else "",
        {device: index for device, index in indexes.items() if index is not None},
    )


def take_step(step: Step, kernel: Kernel) -> None:
    """Do one thing in the kernel; doing it again is no error."""
    match step:
        case AddRule(rule):
            kernel.route.add_rule(rule)
        case DeleteRule(rule):
            kernel.route.delete_rule(rule)
        case AddRoute(one):
            kernel.route.add_route(one)
        case DeleteRoute(one):
            kernel.route.delete_route(one)
        case SetSysctl(name, value):
            write_sysctl(name, value)
        case LoadTable(family, name, text):
            kernel.nft.load(family, name, text)
        case DeleteTable(name):
            kernel.nft.delete(name)


def _require_devices(route: Route, live: Live) -> None:
    for name in devices_of(route):
        if name not in live.devices:
            raise NatctlError(_APPLY, "there is no such device: expected it to exist and be up", name)
