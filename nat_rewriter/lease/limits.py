"""What the sysctls of this network namespace allow: looked at again every second, since they change seldom."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from nat_rewriter.kernel.placeholders import has_fast_open, has_port_ranges
from nat_rewriter.kernel.sysctls import get_ephemeral_ports, list_reserved_ports
from nat_rewriter.model.slices import PortRange

_LOOK_EVERY_S = 1.0


class _Seen(NamedTuple):
    fast_open: bool
    ephemeral: PortRange | None  # None also where the kernel has no IP_LOCAL_PORT_RANGE
    reserved: tuple[PortRange, ...]
    usable: dict[tuple[PortRange, ...], tuple[PortRange, ...]]  # what was asked for before


class Limits:
    """Whether clients may use TCP Fast Open, and where the kernel follows IP_LOCAL_PORT_RANGE. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen_at = float("-inf")
        self._seen = _Seen(False, None, (), {})

    @property
    def fast_open(self) -> bool:
        """Whether clients may use TCP Fast Open."""
        return self._now().fast_open

    def usable(self, ranges: tuple[PortRange, ...]) -> tuple[PortRange, ...]:
        """Return the ranges within which the kernel picks a port if it is asked to; elsewhere it would take any.

        inet_sk_get_local_port_range() ignores an end that lies outside ip_local_port_range, and ports of
        ip_local_reserved_ports are never picked.
        """
        seen = self._now()
        if ranges not in seen.usable:
            seen.usable[ranges] = tuple(ports for ports in ranges if _is_usable(ports, seen))
        return seen.usable[ranges]

    def _now(self) -> _Seen:
        with self._lock:
            if time.monotonic() - self._seen_at > _LOOK_EVERY_S:
                ephemeral = get_ephemeral_ports() if has_port_ranges() else None
                self._seen = _Seen(has_fast_open(), ephemeral, list_reserved_ports(), {})
                self._seen_at = time.monotonic()
            return self._seen


def _is_usable(ports: PortRange, seen: _Seen) -> bool:
    if seen.ephemeral is None or ports.first not in seen.ephemeral or ports.last not in seen.ephemeral:
        return False
    return not any(ports.overlaps(reserved) for reserved in seen.reserved)
