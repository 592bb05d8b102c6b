"""The slices of a lab, and the natctl configuration for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from nat_rewriter.errors import UsageError
from nat_rewriter.model.slices import PortRange, Protocol, Slice
from netns_lab.topology import CLIENT_LINK, CLIENT_NETWORKS, SOFT_ADDRESS, SOFT_ADDRESS_6

DEFAULT_SLICES = (f"{SOFT_ADDRESS}:9000-9009", f"[{SOFT_ADDRESS_6}]:9000-9009")


def parse_slices(specs: Iterable[str]) -> tuple[Slice, ...]:
    """Return slices named ams-1, ams-2, … from texts like ``198.51.100.10:9000-9009,9100`` or ``[2001:db8::1]:9000``.

    Each is for TCP, UDP and ICMP.
    """
    return tuple(_parse(spec, f"ams-{number}") for number, spec in enumerate(specs, 1))


def _parse(spec: str, name: str) -> Slice:
    try:
        address, _, ports = spec.rpartition(":")
        ranges = tuple(_port_range(text) for text in ports.split(","))
        return Slice(name, ip_address(address.strip("[]")), ranges, tuple(Protocol))
    except ValueError:
        raise UsageError("read slice of the lab", "expected ADDRESS:PORT-PORT[,PORT-PORT]", spec) from None


def _port_range(text: str) -> PortRange:
    first, _, last = text.partition("-")
    return PortRange(int(first), int(last or first))


def config_text(
    slices: Sequence[Slice], *, coexist: str, guard: str, spread: str | None = None, slice_keys: str = "",
    snat_keys: str = "", extra: str = "",
) -> str:  # fmt: skip
    """Return a natctl.toml in which the clients share all slices of their IP version.

    ``slice_keys`` and ``snat_keys`` are lines for each ``[[slice]]`` and ``[[snat]]``; ``extra`` is added at the end.
    """
    lines = ["version = 1", "", "[controller]", f'coexist = "{coexist}"', f'guard = "{guard}"']
    for piece in slices:
        ports = ", ".join(f'"{ports}"' for ports in piece.ranges)
        protocols = ", ".join(f'"{protocol.value}"' for protocol in piece.protocols)
        lines += ["", "[[slice]]", f'name = "{piece.name}"', f'address = "{piece.address}"']
        lines += [f"ports = [{ports}]", f"protocols = [{protocols}]", *slice_keys.splitlines()]
    for version in (4, 6):
        names = [f'"{piece.name}"' for piece in slices if piece.address.version == version]
        if names:
            lines += ["", "[[snat]]", f'name = "clients-ipv{version}"', f'iifname = "{CLIENT_LINK}"']
            lines += [f'source = ["{CLIENT_NETWORKS[version]}"]', f"slices = [{', '.join(names)}]"]
            lines += [f'spread = "{spread}"'] if spread else []
            lines += snat_keys.splitlines()
    return "\n".join(lines) + "\n" + (f"\n{extra.strip()}\n" if extra else "")
