"""``[[slice]]``: what this host owns, checked one by one and against each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from nat_rewriter.config import values
from nat_rewriter.config.plain import plain_slice, share_ports
from nat_rewriter.config.ports import Bounds, overlaps, ranges_text, read_ranges
from nat_rewriter.config.section import Section, refuse_repeated_names
from nat_rewriter.model.policy import Coexist
from nat_rewriter.model.slices import Address, PortRange, PortSet, Protocol, Slice, merge_ranges, subtract_ranges

# Slices by name. None: the file has the slice, but with problems of its own.
SlicesByName = dict[str, Slice | None]
Read = tuple[Section, str | None, Slice | None]


def read_slices(root: Section, coexist: Coexist | None, *, needed: bool) -> SlicesByName:
    """Return the slices of a file, in its order. ``coexist`` is None where the file's word for it is faulty."""
    sections = root.tables("slice")
    if not sections and root.sound("slice") and needed:
        root.refuse("slice", 'at least one [[slice]] with name, address and ports, e.g. ports = ["9000-9009"]')
    read = [_read_slice(section, coexist) for section in sections]
    refuse_repeated_names((section, name) for section, name, _ in read)
    placed = [(section, found) for section, _, found in read if found]
    if share_ports([found for _, found in placed]):
        _refuse_shared_ports(placed)
    by_name: SlicesByName = {}
    for _, name, found in read:
        if name is not None:
            by_name.setdefault(name, found)
    return by_name


def _read_slice(section: Section, coexist: Coexist | None) -> Read:
    if plain := plain_slice(section.content):
        return section, plain.name, plain
    name = section.required("name", values.name)
    address = section.required("address", values.host_address)
    protocols = set(section.distinct("protocols", values.choice(Protocol)).values())
    if not section.has("protocols"):
        protocols = {Protocol.TCP, Protocol.UDP}
    ranges = _read_owned_ranges(section)
    socket_ranges = _read_socket_ranges(section, ranges, coexist)
    section.refuse_unknown()
    if name is None or address is None or not section.clean:
        return section, name, None
    ordered = tuple(protocol for protocol in Protocol if protocol in protocols)
    return section, name, Slice(name, address, ranges, ordered, socket_ranges)


def _read_owned_ranges(section: Section) -> tuple[PortRange, ...]:
    ranges = read_ranges(section, "ports")
    port_set = _read_port_set(section)
    if section.has("ports") and section.has("psid"):
        section.refuse("psid", "either ports or psid, not both")
    elif not section.has("ports") and not section.has("psid"):
        section.refuse("ports", 'ports = ["9000-9009"], or psid = { offset = 6, length = 8, id = 52 }')
    if port_set is None:
        return ranges
    return _expand(section, port_set)


def _read_port_set(parent: Section) -> PortSet | None:
    section = parent.table("psid")
    if section is None or not parent.has("psid"):
        return None
    offset = section.required("offset", values.integer(0, 15, 6))
    length = section.required("length", values.integer(0, 16, 8))
    psid = section.required("id", values.integer(0, 65535, 52))
    section.refuse_unknown()
    if offset is None or length is None:
        return None
    if offset + length > 16:
        section.refuse("length", f"at most {16 - offset} bits beside an offset of {offset}")
    elif psid is not None and psid >= 1 << length:
        section.refuse("id", f"an id below {1 << length}, which is 2 to the length of {length}")
    return PortSet(offset, length, psid) if psid is not None and section.clean else None


def _expand(section: Section, port_set: PortSet) -> tuple[PortRange, ...]:
    """Return the ports of the set. Port 0, which only an offset of 0 can yield, is none that a packet may have."""
    ranges = subtract_ranges(merge_ranges(port_set.ranges()), [PortRange(0, 0)])
    if not ranges:
        section.refuse("psid", "a set with a port other than 0, e.g. { offset = 6, length = 8, id = 52 }")
    return ranges


def _read_socket_ranges(section: Section, owned: Sequence[PortRange], coexist: Coexist | None) -> tuple[PortRange, ...]:
    ranges = read_ranges(section, "socket_ports", Bounds(owned, "of this slice") if owned else None)
    if not ranges:
        return ()
    if coexist not in (None, Coexist.SPLIT):
        section.refuse("socket_ports", 'coexist = "split" in [controller] beside it, or no socket_ports')
    if owned and not subtract_ranges(owned, ranges):
        section.refuse("socket_ports", f"some ports of the slice left for rewriting, out of {ranges_text(owned)}")
    return ranges


def _refuse_shared_ports(placed: Sequence[tuple[Section, Slice]]) -> None:
    reported: set[tuple[int, int]] = set()
    for (address, protocol), claims in _claims(placed):
        for earlier, later, ports in overlaps(claims):
            if (earlier, later) in reported:
                continue
            reported.add((earlier, later))
            section = placed[later][0]
            section.refuse(
                "psid" if section.has("psid") else "ports",
                f"ports of {address} that no other slice has: {protocol.value} {ports} is in {placed[earlier][0].path}",
            )


def _claims(
    placed: Sequence[tuple[Section, Slice]],
) -> Iterator[tuple[tuple[Address, Protocol], list[tuple[PortRange, int]]]]:
    claims: defaultdict[tuple[Address, Protocol], list[tuple[PortRange, int]]] = defaultdict(list)
    for position, (_, owned) in enumerate(placed):
        for protocol in owned.protocols:
            claims[owned.address, protocol].extend((ports, position) for ports in owned.ranges)
    yield from claims.items()
