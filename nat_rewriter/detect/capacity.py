"""Slices that are running out of ports towards a destination."""

from __future__ import annotations

from nat_rewriter.detect.observation import Observation
from nat_rewriter.detect.parties import port_word
from nat_rewriter.detect.uses import Use
from nat_rewriter.model.findings import Finding, Kind

# Half of a percent is nothing to speak of.
_SURE = 0.995


def find_slice_exhausted(observation: Observation) -> list[Finding]:
    """Destinations towards which every port of a slice is in use."""
    return [_exhausted(observation, use) for use in observation.uses if use.used == use.capacity]


def find_slice_pressure(observation: Observation) -> list[Finding]:
    """Destinations that use more than the threshold of the ports that are in use or findable, and not all ports yet."""
    return [
        _pressure(observation, use)
        for use in observation.uses
        if observation.pressure * (use.used + use.free * use.find_chance) < use.used < use.capacity
    ]


def _exhausted(observation: Observation, use: Use) -> Finding:
    name, where = observation.index.slice_name(use.slice_number), use.towards.destination
    return _finding(
        observation,
        Kind.SLICE_EXHAUSTED,
        use,
        f"All {use.capacity} {port_word(use.towards)}s of slice {name} are in use to {where}: "
        f"new {use.towards.protocol} flows there are dropped.",
    )


def _pressure(observation: Observation, use: Use) -> Finding:
    name, where = observation.index.slice_name(use.slice_number), use.towards.destination
    missed = ""
    if use.find_chance < _SURE:
        missed = f", and the kernel's search misses the free ones for {1 - use.find_chance:.0%} of new flows"
    return _finding(
        observation,
        Kind.SLICE_PRESSURE,
        use,
        f"{use.used} of the {use.capacity} {port_word(use.towards)}s of slice {name} are in use to {where}{missed}.",
    )


def _finding(observation: Observation, kind: Kind, use: Use, message: str) -> Finding:
    destination = use.towards.destination
    zone = {"zone": use.zone} if use.zone else {}
    headroom = {"free": use.free, "findable": use.findable, "find_chance": round(use.find_chance, 3)}
    return Finding(
        kind,
        message,
        "Give the slice more ports under [[slice]] ports, or name a further slice in slices of the [[snat]] rule, "
        "and run natctl apply.",
        slice=observation.index.slice_name(use.slice_number),
        protocol=use.towards.protocol,
        subject=f"{destination} {use.zone}",
        extra={"destination": destination, "used": use.used, "capacity": use.capacity, **headroom, **zone},
    )
