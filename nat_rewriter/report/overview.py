"""The state of a host as JSON and as lines."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from nat_rewriter.model.overview import DestinationUse, Overview, SliceFlows, Stray
from nat_rewriter.report.json_lines import time_text, tuple_object, without_absent


def overview_object(overview: Overview, moment: datetime) -> dict[str, Any]:
    """Return the state with the field names that ``status --json`` prints."""
    return {
        "time": time_text(moment),
        "table": overview.controller.table,
        "coexist": overview.controller.coexist.value,
        "guard": overview.controller.guard.value,
        "slices": [_slice_object(each) for each in overview.slices],
        "flows_outside": overview.outside,
        "busiest": [_destination_object(use) for use in overview.busiest],
        "strays": [_stray_object(stray) for stray in overview.strays],
        "drift": list(overview.differences),
        "conntrack": {"entries": overview.entries, "max": overview.max_entries},
        "sysctls": dict(overview.sysctls),
    }


def _slice_object(each: SliceFlows) -> dict[str, Any]:
    return {
        "name": each.slice.name,
        "address": str(each.slice.address),
        "ports": [str(ports) for ports in each.slice.ranges],
        "protocols": [protocol.value for protocol in each.slice.protocols],
        "size": each.size,
        "flows": {
            protocol: {"forwarded": count.forwarded, "local": count.local} for protocol, count in each.flows.items()
        },
    }  # fmt: skip


def _destination_object(use: DestinationUse) -> dict[str, Any]:
    zone = {"zone": use.zone} if use.zone else {}
    return {
        "slice": use.slice,
        "protocol": use.protocol,
        "destination": use.destination,
        "used": use.used,
        "capacity": use.capacity,
        "headroom": use.headroom,
        "findable": use.findable,
        **zone,
    }


def _stray_object(stray: Stray) -> dict[str, Any]:
    fields = {
        "protocol": stray.tuple.protocol,
        "tuple": tuple_object(stray.tuple),
        "packets": stray.packets,
        "bytes": stray.bytes,
        "last_seen_s": stray.last_seen_s,
    }
    return without_absent(fields)


def overview_lines(overview: Overview) -> Iterator[str]:
    """Yield the state as lines that each begin with what they are about: slice, busiest, stray, drift, conntrack."""
    controller = overview.controller
    yield f"table inet {controller.table} coexist={controller.coexist.value} guard={controller.guard.value}"
    yield from (slice_line(each) for each in overview.slices)
    if overview.outside:
        yield f"outside flows={overview.outside}"
    for use in overview.busiest:
        free = f"headroom={use.headroom} findable={use.findable}"
        yield f"busiest {use.slice} {use.protocol} {use.destination} used={use.used} {free}"
    for stray in overview.strays:
        yield f"stray {stray.tuple} packets={stray.packets} last-seen={age_text(stray.last_seen_s)}"
    yield from (f"drift {line}" for line in overview.differences)
    yield f"conntrack entries={overview.entries} max={overview.max_entries}"
    yield from (f"sysctl {name} = {value}" for name, value in overview.sysctls.items())


def slice_line(each: SliceFlows) -> str:
    """Return a slice and its flows as one line."""
    flows = " ".join(
        f"{protocol}={count.forwarded}+{count.local}" for protocol, count in each.flows.items()
    )  # fmt: skip
    return f"slice {each.slice.name} {each.slice.address} {ports_text(each)} size={each.size} {flows}"


def ports_text(each: SliceFlows, most: int = 4) -> str:
    """Return the first ranges of a slice, and how many more there are."""
    ranges = each.slice.ranges
    more = f",+{len(ranges) - most}" if len(ranges) > most else ""
    return ",".join(map(str, ranges[:most])) + more


def age_text(seconds: int | None) -> str:
    """Return how long ago something was, in the largest unit that leaves a whole number above 1."""
    if seconds is None:
        return "unknown"
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
