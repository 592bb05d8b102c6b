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
    until: float
    fast_open: bool
    ephemeral: PortRange | None  # None also where the kernel has no IP_LOCAL_PORT_RANGE
    reserved: tuple[PortRange, ...]
    usable: dict[str, tuple[PortRange, ...]]  # what was asked for before, by the name of the slice


class Limits:
    """Whether clients may use TCP Fast Open, and where the kernel follows IP_LOCAL_PORT_RANGE. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Replaced as a whole, so that most calls need no lock.
        self._seen = _Seen(float("-inf"), False, None, (), {})

    @property
    def fast_open(self) -> bool:
        """Whether clients may use TCP Fast Open."""
        return self._seen.fast_open if time.monotonic() < self._seen.until else self._now().fast_open

    def usable(self, name: str, ranges: tuple[PortRange, ...]) -> tuple[PortRange, ...]:
        """Return the ranges of a slice where the kernel picks a port if it is asked to; elsewhere it would take any.

        inet_sk_get_local_port_range() ignores an end that lies outside ip_local_port_range, and ports of
        ip_local_reserved_ports are never picked.
        """
        seen = self._seen if time.monotonic() < self._seen.until else self._now()
        usable = seen.usable.get(name)
        if usable is None:
            usable = seen.usable[name] = tuple(ports for ports in ranges if _is_usable(ports, seen))
        return usable

    def _now(self) -> _Seen:
        with self._lock:
            if time.monotonic() >= self._seen.until:
                self._seen = _look()
            return self._seen


def _look() -> _Seen:
    ephemeral = get_ephemeral_ports() if has_port_ranges() else None
    return _Seen(time.monotonic() + _LOOK_EVERY_S, has_fast_open(), ephemeral, list_reserved_ports(), {})


def _is_usable(ports: PortRange, seen: _Seen) -> bool:
    if seen.ephemeral is None or ports.first not in seen.ephemeral or ports.last not in seen.ephemeral:
        return False
    return not any(ports.overlaps(reserved) for reserved in seen.reserved)
