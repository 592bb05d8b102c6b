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
_FRAGMENTS_S = 30  # net.ipv4.ipfrag_time: as long as anybody waits for the rest


class RouteTable(NamedTuple):
    """A table to be loaded: its family, its name, and its nft text."""

    family: str
    name: str
    text: str


class Portless(NamedTuple):
    """How nft spells packets without ports of their own: ICMP errors, and fragments behind the first.

    ``own``: protocol, addresses and ports of a packet without options, as bits behind its network header; ``quoted``:
    the same of the packet that an ICMP error is about, as bits of the error. ``fragment``: what fragments of a packet
    share.
    """

    own: str
    quoted: str
    errors: str
    fragment: str
    more_fragments: str
    later_fragment: str


_PORTLESS = {
    4: Portless(
        own="@nh,72,8 . @nh,96,32 . @nh,128,32 . @nh,160,32",
        quoted="@th,136,8 . @th,160,32 . @th,192,32 . @th,224,32",
        errors="icmp type { destination-unreachable, time-exceeded, parameter-problem }",
        fragment="ip saddr . ip daddr . ip id",
        more_fragments="ip frag-off & 0x2000 != 0",
        later_fragment="ip frag-off & 0x1fff != 0",
    ),
    6: Portless(
        own="@nh,48,8 . @nh,64,128 . @nh,192,128 . @nh,320,32",
        quoted="@th,112,8 . @th,128,128 . @th,256,128 . @th,384,32",
        errors="icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }",
        fragment="ip6 saddr . ip6 daddr . frag id",
        more_fragments="frag more-fragments 1",
        later_fragment="frag frag-off != 0",
    ),
}


@dataclass(frozen=True, slots=True)
class Family(IpVersion):
    """What the table has for one IP version.

    ``addresses`` and ``ports``: anonymous sets of soft-unicast addresses, and of address . protocol . ports.
    """

    addresses: str
    ports: str
    gateway: Address | None
    portless: Portless


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
            fragments_s=_FRAGMENTS_S,
        )
    )
    return RouteTable("netdev" if ingress else "inet", name, text)


def _family(route: Route, number: int) -> Family:
    slices = [owned for owned in route.slices if owned.address.version == number]
    addresses = set_of(dict.fromkeys(owned.address for owned in slices))
    return Family(
        number, addresses, "{ " + ", ".join(owned_ports(slices)) + " }", route.gateway(number), _PORTLESS[number]
    )


def _bits(value: int) -> str:
    return f"0x{value:08x}"
