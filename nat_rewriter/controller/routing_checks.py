"""What a route needs of this host, as checks of ``natctl doctor``."""

from __future__ import annotations

from collections.abc import Iterator

from nat_rewriter.controller.generations import place_of
from nat_rewriter.controller.routing_view import read_view
from nat_rewriter.errors import NatctlError
from nat_rewriter.model.checkup import Answer, Check, Weight
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.route import EarlyDemux
from nat_rewriter.model.routing import RoutingView
from nat_rewriter.report.route import step_text

_PURPOSE = "[route]: packets of the tunnel, and replies to them"
_MOST_SHOWN = 3


def check_route(policy: Policy) -> Iterator[Check]:
    """Yield whether the route of a policy, which has one, is in place, and what stands in the way of its replies."""
    try:
        view = read_view(policy, place_of(None, policy.controller.table))
    except (NatctlError, OSError) as error:
        yield Check("route", Answer.UNKNOWN, Weight.RECOMMENDED, _PURPOSE, str(error))
        return
    yield _check_place(view)
    if view.route.early_demux in (EarlyDemux.DEVICE, EarlyDemux.OFF):
        yield _check_sockets(view)


def _check_place(view: RoutingView) -> Check:
    if view.state == "in place":
        found = f"in place, replies by {view.route.early_demux.value}"
        return Check("route", Answer.YES, Weight.RECOMMENDED, _PURPOSE, found)
    if view.missing_devices:
        found = f"there is no device {', '.join(view.missing_devices)}"
        remedy = "start what makes it, then natctl route apply"
        return Check("route", Answer.NO, Weight.RECOMMENDED, _PURPOSE, found, remedy)
    shown = "; ".join(map(step_text, view.pending[:_MOST_SHOWN]))
    more = len(view.pending) - _MOST_SHOWN
    found = f"{view.state}, to be done: {shown}{f'; and {more} more' if more > 0 else ''}"
    return Check("route", Answer.NO, Weight.RECOMMENDED, _PURPOSE, found, "natctl route apply")


def _check_sockets(view: RoutingView) -> Check:
    name, purpose = "route-sockets", "replies to the tunnel go past sockets that have their tuple"
    if not view.unbound:
        return Check(
            name, Answer.YES, Weight.OPTIONAL, purpose, "every socket on ports of the slices is bound to a device"
        )
    found = f"{view.unbound} sockets on ports of the slices are bound to no device"
    remedy = f'SO_BINDTODEVICE "{view.route.device}", or early_demux = "ingress" in [route]'
    return Check(name, Answer.NO, Weight.OPTIONAL, purpose, found, remedy)
