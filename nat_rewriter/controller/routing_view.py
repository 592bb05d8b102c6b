"""How a route stands in the kernel: what is in place, what is not, and what it has counted. Nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator

from nat_rewriter.controller.routing import Kernel, devices_of, read_live, route_of
from nat_rewriter.controller.routing_plan import Wanted, plan_routing, wanted_of
from nat_rewriter.controller.routing_state import read_kept
from nat_rewriter.kernel.route_table import Counts, RouteNft
from nat_rewriter.kernel.rules import RouteSocket
from nat_rewriter.model.generations import Place
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.route import Route
from nat_rewriter.model.routing import Kept, Live, RoutingView, SysctlState
from nat_rewriter.render.route import route_table_name


def read_view(policy: Policy, place: Place) -> RoutingView:
    """Return how the route of a policy stands. Raises UsageError where it has none, PermissionNeeded, NftError."""
    route, kept, name = route_of(policy), read_kept(place), route_table_name(policy.controller.table)
    with RouteNft() as nft, RouteSocket() as source:
        live = read_live(Kernel(source, nft), policy, kept)
        counts = nft.count(live.table_family, name) if live.table_family else Counts({}, {})
    wanted = wanted_of(route, policy, live, kept)
    bound, unbound = count_sockets(route)
    return RoutingView(
        route,
        tuple(plan_routing(wanted, live, kept)),
        tuple(name for name in devices_of(route) if name not in live.devices),
        tuple(rule for rule in live.rules if rule.own or rule.is_local),
        live.routes,
        tuple(_sysctl_states(wanted, live, kept)),
        f"{live.table_family} {name}" if live.table_family else "",
        counts.packets,
        counts.tuples,
        bound,
        unbound,
    )


def count_sockets(route: Route) -> tuple[int, int]:
    """Return how many sockets are connected from ports of the slices: bound to a device, and bound to none.

    Early demux gives those bound to none what comes for their tuple, also where it is a reply to the tunnel.
    """
    from nat_rewriter.detect import Observation, SliceIndex
    from nat_rewriter.kernel.sockets import list_sockets

    seen = Observation(SliceIndex(route.slices), sockets=list_sockets())
    bound = int((seen.sockets["ifindex"][seen.connected_rows] != 0).sum())
    return bound, len(seen.connected_rows) - bound


def _sysctl_states(wanted: Wanted, live: Live, kept: Kept) -> Iterator[SysctlState]:
    for name, value in (wanted.sysctls or {}).items():
        before = kept.sysctls.get(name)
        yield SysctlState(name, live.sysctls.get(name), value, before[0] if before else None)
