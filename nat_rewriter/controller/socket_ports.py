"""The ports that sockets are given when they ask for none in particular, and how slices are kept out of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nat_rewriter.model.slices import PortRange, Protocol, Slice, merge_ranges, subtract_ranges

RESERVED = "net.ipv4.ip_local_reserved_ports"
RANGE = "net.ipv4.ip_local_port_range"
_UNPRIVILEGED = PortRange(1024, 65535)
# Of the ports that sockets are given, this share has to be left: without any, no program of the host gets out.
_LEAST_LEFT = 0.1


class Apart(NamedTuple):
    """A sysctl and the value that keeps two uses of ports apart, as the kernel reads it back."""

    sysctl: str
    value: str


def rewritten_ports(slices: Iterable[Slice]) -> list[PortRange]:
    """Return the ports that packet rewriting uses: no socket is to be given one of them unasked."""
    return [
        ports
        for owned in slices
        if {Protocol.TCP, Protocol.UDP} & set(owned.protocols)
        for ports in owned.rewrite_ranges
    ]


def keep_apart(given: PortRange, reserved: Sequence[PortRange], taken: Sequence[PortRange]) -> Apart | None:
    """Return what keeps the kernel from giving a taken port to a socket.

    ``given``, ``reserved``: ip_local_port_range and ip_local_reserved_ports as they are. The taken ports are reserved
    too, where that leaves enough to be given. Else other ports are given: the longest run that nobody has taken. None
    where none is long enough.
    """
    together = merge_ranges((*reserved, *taken))
    least = _LEAST_LEFT * len(given)
    if sum(map(len, subtract_ranges([given], together))) >= least:
        return Apart(RESERVED, ",".join(map(str, together)))
    longest = max(subtract_ranges([_UNPRIVILEGED], together), key=len, default=None)
    if longest is None or len(longest) < least:
        return None
    return Apart(RANGE, f"{longest.first}\t{longest.last}")
