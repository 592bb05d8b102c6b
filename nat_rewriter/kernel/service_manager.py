"""The service manager that started natctl, where one did, and what it is told: sd_notify(3), sd_watchdog_enabled(3)."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

from nat_rewriter.errors import NatctlError

_PATHS, _ABSTRACT = "/", "@"  # what the address of a notification socket begins with
_PINGS_IN_A_TIMEOUT = 3  # one may be late


class ServiceManager:
    """Tells the manager named by ``$NOTIFY_SOCKET`` what the service does; without that variable nobody is told.

    The variables are taken out of the environment, so that no child speaks for the service. A socket with an abstract
    name is looked for in the network namespace of the caller.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        self._address = environment.pop("NOTIFY_SOCKET", "")
        self._ping_every_s = _ping_interval(environment)
        self._next_ping = 0.0

    @property
    def present(self) -> bool:
        """Whether there is a manager to tell."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """Tell that the service is up, or that its reload is over; raise NatctlError where that does not arrive."""
        try:
            self._send("READY=1", f"STATUS={status}")
        except OSError as error:
            raise NatctlError("tell service manager", (error.strerror or str(error)).lower(), self._address) from None

    def reloading(self) -> None:
        """Tell that the configuration is being read again; ``ready`` ends it."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Tell that the service is about to end."""
        self._tell("STOPPING=1")

    def alive(self) -> None:
        """Keep the watchdog quiet; to be called often, as most calls send nothing."""
        if self._ping_every_s and time.monotonic() >= self._next_ping:
            self._tell("WATCHDOG=1")
            self._next_ping = time.monotonic() + self._ping_every_s

    def _tell(self, *assignments: str) -> None:
        """Send what the service can go on without: a manager that is busy or gone must not hold it up."""
        with contextlib.suppress(OSError):
            self._send(*assignments)

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        if self._address[0] not in (_PATHS, _ABSTRACT):
            raise OSError(0, "expected a path, or a name that begins with @")
        name = "\0" + self._address[1:] if self._address[0] == _ABSTRACT else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(assignments).encode(), name)


def _ping_interval(environment: MutableMapping[str, str]) -> float | None:
    """Return the seconds between two pings, None where no watchdog waits for this process."""
    timeout, process = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
    if not timeout.isdecimal() or not int(timeout) or process not in ("", str(os.getpid())):
        return None
    return int(timeout) / 1e6 / _PINGS_IN_A_TIMEOUT
