"""Where the kernel follows IP_LOCAL_PORT_RANGE, and where it would silently take any port instead."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from nat_rewriter.kernel.placeholders import has_port_ranges
from nat_rewriter.kernel.sysctls import get_ephemeral_ports, list_reserved_ports
from nat_rewriter.model.slices import PortRange

_LOOK_EVERY_S = 1.0


class Clamp:
    """What the sysctls of this network namespace leave of port ranges; read again every second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._ephemeral: PortRange | None = None
        self._reserved: tuple[PortRange, ...] = ()

    def usable(self, ranges: Sequence[PortRange]) -> tuple[PortRange, ...]:
        """Return the ranges within which the kernel picks a port if it is asked to; the others go by hand.

        inet_sk_get_local_port_range() ignores an end that lies outside ip_local_port_range, and ports of
        ip_local_reserved_ports are never picked.
        """
        with self._lock:
            if time.monotonic() - self._read_at > _LOOK_EVERY_S:
                self._ephemeral = get_ephemeral_ports() if has_port_ranges() else None
                self._reserved = list_reserved_ports()
                self._read_at = time.monotonic()
            return tuple(filter(self._is_usable, ranges))

    def _is_usable(self, ports: PortRange) -> bool:
        if self._ephemeral is None or ports.first not in self._ephemeral or ports.last not in self._ephemeral:
            return False
        return not any(ports.overlaps(reserved) for reserved in self._reserved)
