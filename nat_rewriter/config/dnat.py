"""``[[dnat]]``: where unsolicited packets to a slice go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from nat_rewriter.config import values
from nat_rewriter.config.ports import Bounds, overlaps, ranges_text, read_ranges
from nat_rewriter.config.section import Section, refuse_repeated_names, suggestion
from nat_rewriter.config.slices import SlicesByName
from nat_rewriter.config.values import Target
from nat_rewriter.model.policy import DnatRule
from nat_rewriter.model.slices import PortRange, Protocol, Slice


def read_dnat(root: Section, slices: SlicesByName) -> list[DnatRule]:
    """Return the sound DNAT rules of a file, in its order."""
    read = [_read_rule(section, slices) for section in root.tables("dnat")]
    refuse_repeated_names((section, name) for section, name, _ in read)
    placed = [(section, rule) for section, _, rule in read if rule]
    _refuse_shared_ports(placed)
    return [rule for _, rule in placed]


def _read_rule(section: Section, slices: SlicesByName) -> tuple[Section, str | None, DnatRule | None]:
    name = section.required("name", values.name)
    owned = _read_slice(section, slices)
    ranges = read_ranges(section, "ports", _bounds(owned) if owned else None) or (owned.rewrite_ranges if owned else ())
    to = section.required("to", values.target)
    section.refuse_unknown()
    if to is not None:
        _refuse_target(section, to, owned, (known for known in slices.values() if known))
    if name is None or owned is None or to is None or not section.clean:
        return section, name, None
    return section, name, DnatRule(name, owned, ranges, to.address, to.port)


def _read_slice(section: Section, slices: SlicesByName) -> Slice | None:
    name = section.required("slice", values.text)
    if name is None:
        return None
    if name not in slices:
        section.refuse("slice", f"the name of a [[slice]]{suggestion(name, slices)}")
    owned = slices.get(name)
    if owned is not None and not {Protocol.TCP, Protocol.UDP} & set(owned.protocols):
        section.refuse("slice", "a slice with tcp or udp among its protocols: echo ids cannot be forwarded")
    return owned


def _bounds(owned: Slice) -> Bounds:
    kept = f", less those for sockets ({ranges_text(owned.socket_ranges)})" if owned.socket_ranges else ""
    return Bounds(owned.rewrite_ranges, f'of slice "{owned.name}"{kept}')


def _refuse_target(section: Section, to: Target, owned: Slice | None, slices: Iterable[Slice]) -> None:
    if owned is not None and to.address.version != owned.address.version:
        section.refuse("to", f'an IPv{owned.address.version} address, the family of slice "{owned.name}"')
    holder = next((other for other in slices if other.address == to.address), None)
    if holder is not None:
        section.refuse("to", f'the address of a host behind this one, not that of slice "{holder.name}"')


def _refuse_shared_ports(placed: Sequence[tuple[Section, DnatRule]]) -> None:
    claims: defaultdict[str, list[tuple[PortRange, int]]] = defaultdict(list)
    for position, (_, rule) in enumerate(placed):
        claims[rule.slice.name].extend((ports, position) for ports in rule.ranges)
    reported: set[tuple[int, int]] = set()
    for claim in claims.values():
        for earlier, later, ports in overlaps(claim):
            if (earlier, later) not in reported:
                reported.add((earlier, later))
                elsewhere = f"{ports} goes to {placed[earlier][1].to} by {placed[earlier][0].path}"
                placed[later][0].refuse("ports", f"ports that no other rule of the slice forwards: {elsewhere}")
