"""(before, after) -> what differs between two policies, by the names that the operator gave."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from nat_rewriter.model.changes import Difference, PolicyChange
from nat_rewriter.model.policy import Controller, DnatRule, Policy, SnatRule
from nat_rewriter.model.slices import PortRange, Slice
from nat_rewriter.model.tuples import endpoint_text

Named = TypeVar("Named", Slice, SnatRule, DnatRule)
Fields = dict[str, str]
NOWHERE: Mapping[str, tuple[int, int]] = {}


def compare(before: Policy | None, after: Policy) -> PolicyChange:
    """Return what differs; everything is added where there was nothing before."""
    old = before or Policy(after.controller, ())
    return PolicyChange(
        (
            *_differences("slice", old.slices, after.slices, slice_fields),
            *_differences("snat", old.snat, after.snat, snat_fields, _places(old.snat, after.snat)),
            *_differences("dnat", old.dnat, after.dnat, dnat_fields),
        ),
        _settings(old.controller, after.controller),
    )


def slice_fields(owned: Slice) -> Fields:
    """Return a slice as fields of a configuration."""
    found = {
        "address": str(owned.address),
        "ports": ports_text(owned.ranges),
        "protocols": ", ".join(protocol.value for protocol in owned.protocols),
        "socket_ports": ports_text(owned.socket_ranges),
    }
    return _present(found)


def snat_fields(rule: SnatRule) -> Fields:
    """Return an SNAT rule as fields of a configuration; slices by their names."""
    return _present(
        {
            "iifname": ", ".join(rule.iifname),
            "oifname": ", ".join(rule.oifname),
            "source": ", ".join(map(str, rule.source)),
            "destination": ", ".join(map(str, rule.destination)),
            "mark": "" if rule.mark is None else f"{rule.mark:#x}",
            "slices": ", ".join(owned.name for owned in rule.slices),
            "spread": rule.spread.value,
            "exclude": ", ".join(map(str, rule.exclude)),
            "exclude_source": ", ".join(map(str, rule.exclude_source)),
            "timestamps": rule.timestamps.value,
        }
    )


def dnat_fields(rule: DnatRule) -> Fields:
    """Return a DNAT rule as fields of a configuration; its slice by name."""
    to = str(rule.to) if rule.to_port is None else endpoint_text(rule.to, rule.to_port)
    return {"slice": rule.slice.name, "ports": ports_text(rule.ranges), "to": to}


def ports_text(ranges: Sequence[PortRange]) -> str:
    """Return port ranges as text."""
    return ", ".join(map(str, ranges))


def _differences(
    kind: str,
    before: Sequence[Named],
    after: Sequence[Named],
    fields_of: Callable[[Named], Fields],
    places: Mapping[str, tuple[int, int]] = NOWHERE,
) -> Iterator[Difference]:
    old: dict[str, Named] = {one.name: one for one in before}
    new: dict[str, Named] = {one.name: one for one in after}
    for name in dict.fromkeys((*old, *new)):
        was, will = old.get(name), new.get(name)
        if was == will and name not in places:
            continue
        found = Difference(kind, name, fields_of(was) if was else None, fields_of(will) if will else None)
        if name in places and found.before and found.after:
            first, last = map(str, places[name])
            found = Difference(kind, name, {**found.before, "place": first}, {**found.after, "place": last})
        if found.fields:  # none in a rule where only the slice that it names has changed
            yield found


def _places(before: Sequence[SnatRule], after: Sequence[SnatRule]) -> dict[str, tuple[int, int]]:
    """Return the rules whose place among those that stay is another: the first match wins, so that order matters."""
    old, new = [rule.name for rule in before], [rule.name for rule in after]
    staying = set(old) & set(new)
    was = {name: place for place, name in enumerate((name for name in old if name in staying), 1)}
    will = {name: place for place, name in enumerate((name for name in new if name in staying), 1)}
    return {name: (place, will[name]) for name, place in was.items() if will[name] != place}


def _settings(before: Controller, after: Controller) -> dict[str, tuple[str, str]]:
    pairs = ((one.name, getattr(before, one.name), getattr(after, one.name)) for one in fields(Controller))
    return {name: (_setting(old), _setting(new)) for name, old, new in pairs if old != new}


def _setting(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return str(value.value)
    if is_dataclass(value):
        return ", ".join(f"{one.name} {getattr(value, one.name)}" for one in fields(value))
    return "none" if value is None else str(value)


def _present(found: Fields) -> Fields:
    return {name: text for name, text in found.items() if text}
