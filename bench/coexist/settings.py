"""natctl configurations for the slices of a lab, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nat_rewriter.model.slices import PortRange, Slice
from netns_lab import Lab
from netns_lab.topology import CLIENT_LINK, CLIENT_NETWORKS

Rule = tuple[str, Sequence[Slice]]  # a client network or address, and the slices it is rewritten into


def configuration(
    slices: Sequence[Slice], *, coexist: str = "confine", guard: str = "drop", timestamps: str = "keep",
    timeouts: Mapping[str, int] | None = None, rules: Sequence[Rule] = (),
) -> str:  # fmt: skip
    """Return a natctl.toml; under ``split`` the upper half of each slice is for sockets.

    Without ``rules`` all clients share all slices of their IP version.
    """
    lines = ["version = 1", "[controller]", f'coexist = "{coexist}"', f'guard = "{guard}"']
    if timeouts:
        lines += ["[controller.timeouts]", *(f"{name} = {seconds}" for name, seconds in timeouts.items())]
    for piece in slices:
        lines += _slice_lines(piece, split=coexist == "split")
    for number, (source, targets) in enumerate(rules or _shared(slices)):
        names = ", ".join(f'"{piece.name}"' for piece in targets)
        lines += ["[[snat]]", f'name = "rule-{number}"', f'iifname = "{CLIENT_LINK}"', f'source = ["{source}"]']
        lines += [f"slices = [{names}]", f'timestamps = "{timestamps}"']
    return "\n".join(lines) + "\n"


def apply(lab: Lab, text: str) -> None:
    """Make the egress host of a lab follow a configuration."""
    lab.natctl("apply", "--config", "-", input=text, expect=0)


def socket_half(ports: PortRange) -> PortRange:
    """Return the part of a range that is for sockets under ``split``: its upper half."""
    return PortRange(ports.first + len(ports) // 2, ports.last)


def _slice_lines(piece: Slice, *, split: bool) -> list[str]:
    protocols = ", ".join(f'"{protocol.value}"' for protocol in piece.protocols)
    lines = ["[[slice]]", f'name = "{piece.name}"', f'address = "{piece.address}"', f"protocols = [{protocols}]"]
    lines.append(f"ports = {_ranges(piece.ranges)}")
    if split:
        lines.append(f"socket_ports = {_ranges([socket_half(ports) for ports in piece.ranges])}")
    return lines


def _ranges(ranges: Sequence[PortRange]) -> str:
    return "[" + ", ".join(f'"{ports}"' for ports in ranges) + "]"


def _shared(slices: Sequence[Slice]) -> list[Rule]:
    found = [
        (network, [piece for piece in slices if piece.address.version == version])
        for version, network in CLIENT_NETWORKS.items()
    ]
    return [(network, pieces) for network, pieces in found if pieces]
