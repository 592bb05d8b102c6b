"""The upstream router: it brings back only what belongs to the slices, and counts everything else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from nat_rewriter.model.slices import Protocol, Slice
from netns_lab.topology import CLIENT_NETWORKS, DOWNLINK

TRAFFIC = tuple(f"{protocol.value}{version}" for version in (4, 6) for protocol in Protocol)
_FAMILY = {4: "ip", 6: "ip6"}
_ICMP = {4: "icmp", 6: "icmpv6"}


@dataclass(frozen=True, slots=True)
class Leaks:
    """Packets the upstream saw where none should be, per protocol and IP version: ``{"tcp4": 1, "udp6": 0, …}``.

    ``sent``: from a soft-unicast address with a source port, or echo id, outside every slice. ``lost``: on the way
    to a soft-unicast address and outside every slice, so that another host would have got them; dropped here.
    ``unrewritten``: with a client's own address as source.
    """

    sent: Mapping[str, int]
    lost: Mapping[str, int]
    unrewritten: int

    @property
    def total(self) -> int:
        """Packets that left the egress host outside its slices."""
        return sum(self.sent.values())


def ruleset(slices: Iterable[Slice]) -> str:
    """Return the upstream's nft table: one chain per direction and IP version, a named counter per protocol."""
    chosen = tuple(slices)
    lines = ["table inet upstream {"]
    lines += [f"    counter {direction}-{name} {{ }}" for direction in ("sent", "lost") for name in TRAFFIC]
    lines += ["    counter unrewritten { }"]
    for version in (4, 6):
        owned = [piece for piece in chosen if piece.address.version == version]
        lines += _direction("sent", "saddr", "sport", version, owned)
        lines += _direction("lost", "daddr", "dport", version, owned)
    return "\n".join([*lines, *_forward_chain(chosen), "}"]) + "\n"


def _direction(direction: str, address: str, port: str, version: int, slices: list[Slice]) -> Iterator[str]:
    """A chain that returns what lies in a slice and counts the rest; echo ids are in the same numbers as ports."""
    family, icmp = _FAMILY[version], _ICMP[version]
    echo = "{ echo-request, echo-reply }"
    yield f"    chain {direction}{version} {{"
    for piece in slices:
        ranges = "{ " + ", ".join(map(str, piece.ranges)) + " }"
        for protocol in piece.protocols:
            match = f"{icmp} id {ranges}" if protocol is Protocol.ICMP else f"{protocol.value} {port} {ranges}"
            yield f"        {family} {address} {piece.address} {match} return"
    verdict = " drop" if direction == "lost" else ""
    for name in ("tcp", "udp"):
        yield f"        meta l4proto {name} counter name {direction}-{name}{version}{verdict}"
    yield f"        {icmp} type {echo} counter name {direction}-icmp{version}{verdict}"
    yield "    }"


def _forward_chain(slices: tuple[Slice, ...]) -> Iterator[str]:
    yield "    chain forward {"
    yield "        type filter hook forward priority 0; policy accept;"
    for version in (4, 6):
        family = _FAMILY[version]
        soft = ", ".join(sorted({str(piece.address) for piece in slices if piece.address.version == version}))
        if soft:
            yield f"        iifname {DOWNLINK} {family} saddr {{ {soft} }} jump sent{version}"
            yield f"        oifname {DOWNLINK} {family} daddr {{ {soft} }} jump lost{version}"
        yield f"        iifname {DOWNLINK} {family} saddr {CLIENT_NETWORKS[version]} counter name unrewritten"
    yield "    }"


def parse_counters(listing: str) -> Leaks:
    """Return the counts in the output of ``nft -j list counters``."""
    objects = [entry["counter"] for entry in json.loads(listing)["nftables"] if "counter" in entry]
    packets = {counter["name"]: int(counter["packets"]) for counter in objects}
    return Leaks(
        {name: packets[f"sent-{name}"] for name in TRAFFIC},
        {name: packets[f"lost-{name}"] for name in TRAFFIC},
        packets["unrewritten"],
    )
