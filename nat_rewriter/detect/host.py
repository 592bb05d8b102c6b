"""What is wrong with the host as a whole: its table, its sysctls, and what natctl could not see."""

from __future__ import annotations

from nat_rewriter.detect.observation import Observation
from nat_rewriter.model.findings import Finding, Kind
from nat_rewriter.model.policy import Coexist
from nat_rewriter.model.slices import PortRange, Protocol, Slice, merge_ranges, subtract_ranges


def find_ruleset_drift(observation: Observation) -> list[Finding]:
    """One finding when the live table differs from the configuration; it lists the differences."""
    if not observation.drift:
        return []
    told = [line for line in observation.drift if line[1:].strip(" {}")]  # a bracket alone says nothing
    shown = "; ".join(told[:3])
    more = len(told) - 3
    return [
        Finding(
            Kind.RULESET_DRIFT,
            f"The live table differs from the configuration: {shown}{f'; and {more} more' if more > 0 else ''}.",
            "Run natctl diff to see every difference and natctl apply to mend it.",
            extra={"differences": list(observation.drift)},
        )
    ]


def find_events_lost(observation: Observation) -> list[Finding]:
    """One finding when the kernel dropped events since the last look."""
    loss = observation.loss
    if loss is None:
        return []
    return [
        Finding(
            Kind.EVENTS_LOST,
            f"The kernel dropped {loss.events} events or more; the resync added {loss.added}, removed {loss.removed} "
            f"and changed {loss.changed} entries.",
            "Give natctl watch more processor time, or a larger socket buffer: run it as root, or raise "
            "net.core.rmem_max.",
            subject=str(loss.number),
            extra={
                "events": loss.events,
                "entries": loss.entries,
                "added": loss.added,
                "removed": loss.removed,
                "changed": loss.changed,
            },
        )
    ]


def find_ephemeral_overlap(observation: Observation) -> list[Finding]:
    """Slices whose ports the kernel may give to any socket that asks for none in particular."""
    ephemeral = observation.host.ephemeral
    if ephemeral is None:
        return []
    overlaps = ((each, _overlap(observation, each, ephemeral)) for each in observation.slices)
    return [_overlap_finding(each, ephemeral, ports) for each, ports in overlaps if ports]


def _overlap(observation: Observation, each: Slice, ephemeral: PortRange) -> tuple[PortRange, ...]:
    if set(each.protocols) == {Protocol.ICMP}:
        return ()
    # The ports that a split slice keeps for sockets are meant to be given to sockets.
    shared = each.rewrite_ranges if observation.coexist is Coexist.SPLIT else merge_ranges(each.ranges)
    inside = (
        PortRange(max(ports.first, ephemeral.first), min(ports.last, ephemeral.last))
        for ports in shared
        if ports.overlaps(ephemeral)
    )
    return subtract_ranges(inside, observation.host.reserved)


def _overlap_finding(each: Slice, ephemeral: PortRange, ports: tuple[PortRange, ...]) -> Finding:
    shown = ",".join(str(one) for one in ports)
    return Finding(
        Kind.EPHEMERAL_OVERLAP,
        f"net.ipv4.ip_local_port_range {ephemeral} covers ports {shown} of slice {each.name}: the kernel may give them "
        f"to any socket.",
        f"Add {shown} to net.ipv4.ip_local_reserved_ports, or move net.ipv4.ip_local_port_range.",
        slice=each.name,
        extra={"ports": [str(one) for one in ports]},
    )
