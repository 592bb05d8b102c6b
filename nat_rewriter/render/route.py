"""``[route]`` -> nft text: a table of its own, which marks packets of the tunnel or hands replies to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from nat_rewriter.model.route import EarlyDemux, Route
from nat_rewriter.model.slices import Address
from nat_rewriter.render.ownership import owned_ports
from nat_rewriter.render.spelling import IpVersion, quoted, set_of
from nat_rewriter.render.table import templates

# After conntrack (-200), before anything that looks at marks (NF_IP_PRI_MANGLE is -150).
PRIORITY = -155
_ALL_BITS = 0xFFFFFFFF


class RouteTable(NamedTuple):
    """A table to be loaded: its family, its name, and its nft text."""

    family: str
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Family(IpVersion):
    """What the table has for one IP version.

    ``addresses`` and ``ports``: anonymous sets of soft-unicast addresses, and of address . protocol . ports.
    """

    addresses: str
    ports: str
    gateway: Address | None


def route_table_name(table: str) -> str:
    """Return the name of the table that ``[route]`` has beside the controller's."""
    return f"{table}_route"


def render_route(route: Route, table: str) -> RouteTable:
    """Return the table that a route means. ``table`` is the controller's."""
    ingress = route.early_demux is EarlyDemux.INGRESS
    name = route_table_name(table)
    text = (
        templates()
        .get_template("route_ingress.nft.j2" if ingress else "route_marks.nft.j2")
        .render(
            route=route,
            table=name,
            families=[_family(route, number) for number in route.families],
            tunnel=quoted([route.tunnel]),
            outer=[quoted([name]) for name in route.outer],
            outer_set=quoted(route.outer),
            mark=_bits(route.mark),
            mask=_bits(route.mask),
            keep=_bits(_ALL_BITS & ~route.mask),
            priority=PRIORITY,
        )
    )
    return RouteTable("netdev" if ingress else "inet", name, text)


def _family(route: Route, number: int) -> Family:
    slices = [owned for owned in route.slices if owned.address.version == number]
    addresses = set_of(dict.fromkeys(owned.address for owned in slices))
    return Family(number, addresses, "{ " + ", ".join(owned_ports(slices)) + " }", route.gateway(number))


def _bits(value: int) -> str:
    return f"0x{value:08x}"
