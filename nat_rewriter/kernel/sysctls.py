"""Sysctls of the network namespace that the calling thread is in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from nat_rewriter.errors import KernelError, PermissionNeeded
from nat_rewriter.model.slices import PortRange

_SYSCTLS = Path("/proc/sys")
_LONGEST_VALUE = 1 << 20
_LONGEST_WRITE = 4000  # below the size of a page


def read_sysctl(name: str) -> str | None:
    """Return the value of a sysctl given with dots, None where this kernel has none of that name."""
    try:
        with open(_path(name), "rb", buffering=0) as file:
            # A long list of ports comes in the answer to the first read(2), or not at all: proc_do_large_bitmap().
            return os.read(file.fileno(), _LONGEST_VALUE).decode("ascii").strip()
    except OSError:
        return None


def is_writable(name: str) -> bool:
    """Tell whether this process may set a sysctl: those of the whole host are for reading in other namespaces."""
    return os.access(_path(name), os.W_OK)


def write_sysctl(name: str, value: str) -> None:
    """Set a sysctl given with dots. Raises PermissionNeeded, or KernelError with what the kernel answered."""
    doing = f"set sysctl {name}"
    try:
        with open(_path(name), "wb", buffering=0) as file:
            for part in _parts(value):
                os.write(file.fileno(), part.encode("ascii"))
    except PermissionError:
        raise PermissionNeeded(doing, "CAP_NET_ADMIN, and a writable /proc/sys") from None
    except OSError as error:
        raise KernelError(doing, error.errno or 0, f"{error.strerror}: {value!r}") from None


def _path(name: str) -> Path:
    # A slash stands for the dot of a device such as eth0.100: sysctl(8).
    return _SYSCTLS.joinpath(*(part.replace("/", ".") for part in name.split(".")))


def _parts(value: str) -> Iterator[str]:
    """Yield a value as the kernel takes it: of a long list a page at a time, each added to those before."""
    items = iter(value.split(","))
    part = next(items)
    for item in items:
        if len(part) + len(item) > _LONGEST_WRITE:
            yield part
            part = item
        else:
            part = f"{part},{item}"
    yield f"{part}\n"  # alone, it is how an empty list is written


def get_ephemeral_ports() -> PortRange | None:
    """Return the ports that the kernel picks from for sockets that ask for none: ip_local_port_range."""
    value = read_sysctl("net.ipv4.ip_local_port_range")
    return parse_range(value) if value else None


def list_reserved_ports() -> tuple[PortRange, ...]:
    """Return the ports that the kernel never picks by itself: ip_local_reserved_ports."""
    return parse_ports(read_sysctl("net.ipv4.ip_local_reserved_ports") or "")


def parse_range(value: str) -> PortRange:
    """Return the range of ports that the kernel writes as two numbers."""
    return PortRange(*map(int, value.split()))


def parse_ports(value: str) -> tuple[PortRange, ...]:
    """Return the ranges of a list of ports as the kernel writes it."""
    ends = [piece.split("-") for piece in value.split(",")] if value else []
    return tuple(PortRange(int(end[0]), int(end[-1])) for end in ends)


def has_tcp_early_demux() -> bool:
    """Tell whether the kernel looks for a TCP socket before it routes a packet."""
    return all(
        read_sysctl(name) != "0" for name in ("net.ipv4.ip_early_demux", "net.ipv4.tcp_early_demux")
    )  # fmt: skip
