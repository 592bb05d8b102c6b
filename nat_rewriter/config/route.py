"""``[route]``: forwarded packets whose source is a soft-unicast address, and the way back for their replies."""

from __future__ import annotations

from nat_rewriter.config import values
from nat_rewriter.config.section import Section, suggestion
from nat_rewriter.config.slices import SlicesByName
from nat_rewriter.model.route import EarlyDemux, Route
from nat_rewriter.model.slices import Address, Protocol, Slice

LAST_MARK = 2**32 - 1
LAST_TABLE = 2**32 - 1
LAST_PRIORITY = 32765  # the rule of the main table has 32766
RESERVED_TABLES = range(253, 256)  # default, main, local: include/uapi/linux/rtnetlink.h
MOST_TUPLES = 1 << 24
LONGEST_IDLE_S = 86400


def read_route(root: Section, slices: SlicesByName) -> Route | None:
    """Return what ``[route]`` says; None where it is absent or faulty."""
    section = root.table("route")
    if section is None or not root.has("route"):
        return None
    tunnel = section.required("tunnel", values.interface)
    outer = tuple(section.distinct("outer", values.interface, single=True).values())
    chosen = _read_slices(section, slices)
    if not section.has("outer"):
        section.refuse("outer", 'the devices on which replies arrive, e.g. ["eth0"]')
    route = _read_keys(section, tunnel or "", outer, chosen)
    section.refuse_unknown()
    _refuse_contradictions(section, route)
    return route if section.clean else None


def _read_keys(section: Section, tunnel: str, outer: tuple[str, ...], chosen: tuple[Slice, ...]) -> Route:
    usual = Route(tunnel, outer, chosen)
    return Route(
        tunnel,
        outer,
        chosen,
        early_demux=section.one("early_demux", values.choice(EarlyDemux), usual.early_demux),
        via=_read_gateways(section, chosen),
        device=section.one("device", values.interface, usual.device),
        mark=section.one("mark", values.integer(1, LAST_MARK, usual.mark), usual.mark),
        mask=section.one("mask", values.integer(1, LAST_MARK, usual.mask), usual.mask),
        table=section.one("table", values.integer(1, LAST_TABLE, usual.table), usual.table),
        priority=section.one("priority", values.integer(1, LAST_PRIORITY, 1), usual.priority),
        local_priority=section.one("local_priority", values.integer(2, LAST_PRIORITY, 2), usual.local_priority),
        idle_s=section.one("idle", values.integer(1, LONGEST_IDLE_S, usual.idle_s), usual.idle_s),
        tuples=section.one("tuples", values.integer(1, MOST_TUPLES, usual.tuples), usual.tuples),
    )


def _read_slices(section: Section, slices: SlicesByName) -> tuple[Slice, ...]:
    """Return the slices of the tunnel; none at all when one of them is unknown or faulty."""
    names = section.distinct("slices", values.text)
    if not section.has("slices"):
        section.refuse("slices", 'the names of one or more slices, e.g. ["ams-1"]')
    for index, name in names.items():
        if name not in slices:
            section.refuse("slices", f"the name of a [[slice]]{suggestion(name, slices)}", index)
        elif (owned := slices[name]) and not {Protocol.TCP, Protocol.UDP} & set(owned.protocols):
            section.refuse("slices", "a slice with tcp or udp among its protocols: echo ids are not routed", index)
    found = [slices.get(name) for name in names.values()]
    sound = section.sound("slices") and all(found)
    return tuple(owned for owned in found if owned) if sound else ()


def _read_gateways(section: Section, chosen: tuple[Slice, ...]) -> tuple[Address, ...]:
    gateways = section.distinct("via", values.host_address, single=True)
    families = {owned.address.version for owned in chosen}
    seen: set[int] = set()
    for index, gateway in gateways.items():
        if families and gateway.version not in families:
            section.refuse("via", f"an IPv{min(families)} address, the family of the slices", index)
        elif gateway.version in seen:
            section.refuse("via", "one gateway of each family", index)
        seen.add(gateway.version)
    return tuple(gateways.values())


def _refuse_contradictions(section: Section, route: Route) -> None:
    """Report keys that are sound by themselves and not together."""
    if not section.clean:
        return
    if route.tunnel in route.outer:
        section.refuse("outer", "devices other than the tunnel")
    if route.mark & ~route.mask:
        section.refuse("mark", f"a mark within the bits of mask, {route.mask:#x}")
    if route.table in RESERVED_TABLES:
        section.refuse("table", "a table of its own: 253, 254 and 255 are default, main and local")
    if route.local_priority <= route.priority:
        section.refuse("local_priority", f"a number above that of priority, {route.priority}")
