"""Sysctls of the network namespace that the calling thread is in."""

from __future__ import annotations

from pathlib import Path

from nat_rewriter.model.slices import PortRange

_SYSCTLS = Path("/proc/sys")


def read_sysctl(name: str) -> str | None:
    """Return the value of a sysctl given with dots, None where this kernel has none of that name."""
    try:
        return _SYSCTLS.joinpath(*name.split(".")).read_text(encoding="ascii").strip()
    except OSError:
        return None


def get_ephemeral_ports() -> PortRange | None:
    """Return the ports that the kernel picks from for sockets that ask for none: ip_local_port_range."""
    value = read_sysctl("net.ipv4.ip_local_port_range")
    return PortRange(*map(int, value.split())) if value else None


def list_reserved_ports() -> tuple[PortRange, ...]:
    """Return the ports that the kernel never picks by itself: ip_local_reserved_ports."""
    value = read_sysctl("net.ipv4.ip_local_reserved_ports")
    ends = [piece.split("-") for piece in value.split(",")] if value else []
    return tuple(PortRange(int(end[0]), int(end[-1])) for end in ends)


def has_tcp_early_demux() -> bool:
    """Tell whether the kernel looks for a TCP socket before it routes a packet."""
    return all(
        read_sysctl(name) != "0" for name in ("net.ipv4.ip_early_demux", "net.ipv4.tcp_early_demux")
    )  # fmt: skip
