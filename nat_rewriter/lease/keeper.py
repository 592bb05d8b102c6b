"""Keeps the entries of held leases alive: a thread that looks at them, renews them, and mends what is gone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from nat_rewriter.errors import NatctlError
from nat_rewriter.kernel.lease_entries import Entry, LeaseEntries, Way

PASSES_A_TERM = 3  # an entry is renewed when a third of its time is over
_AT_ONCE = 64
_log = logging.getLogger("nat_rewriter.lease")


class Held(NamedTuple):
    """What is kept: ports of one way."""

    way: Way
    ports: Sequence[int]


class Keeper:
    """Renews entries before their time is over, so that they end soon after their process, whatever its end.

    An entry that is gone (deleted by hand, by a full table, or by a reset that met a socket which had taken it over) is
    made again; ``lost`` is called where a NAT flow has the tuple by then. An entry that a TCP socket has taken over is
    the kernel's to time.
    """

    def __init__(self, entries: LeaseEntries, term_s: int, lost: Callable[[Way, int], None]) -> None:
        self.mended = 0
        self._entries, self._term_s, self._lost = entries, term_s, lost
        self._kept: dict[Way, set[int]] = {}
        self._lock = threading.Lock()  # held while entries are looked at and renewed: never for one that was let go
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def keep(self, way: Way, ports: Sequence[int]) -> None:
        """Renew these entries from now on."""
        with self._lock:
            self._kept.setdefault(way, set()).update(ports)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lease keeper", daemon=True)
                self._thread.start()

    def let_go(self, way: Way, ports: Sequence[int]) -> None:
        """Do not touch these entries any more: when this returns, none is being renewed."""
        with self._lock:
            kept = self._kept.get(way, set())
            kept.difference_update(ports)
            if not kept:
                self._kept.pop(way, None)

    def close(self) -> None:
        """Stop; what is kept then ends with its time."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def look_after(self) -> None:
        """Look at all entries once."""
        for held in self._portions():
            for port in self._renew(held):
                self._lost(held.way, port)

    def _run(self) -> None:
        while not self._closed.wait(self._term_s / PASSES_A_TERM):
            try:
                self.look_after()
            except NatctlError as error:  # the next pass tries again, before the time of any entry is over
                _log.warning("leases could not be renewed: %s", error)

    def _portions(self) -> Iterator[Held]:
        with self._lock:
            whole = [Held(way, tuple(ports)) for way, ports in self._kept.items()]
        for held in whole:
            for start in range(0, len(held.ports), _AT_ONCE):
                yield Held(held.way, held.ports[start : start + _AT_ONCE])

    def _renew(self, held: Held) -> list[int]:
        """Renew or mend the entries of these ports that are still kept; return those that are lost."""
        with self._lock:
            ports = [port for port in held.ports if port in self._kept.get(held.way, ())]
            if not ports:
                return []
            found = dict(zip(ports, self._entries.look(held.way, ports), strict=True))
            gone = [port for port, entry in found.items() if entry is None]
            if ours := [port for port, entry in found.items() if entry and self._is_ours(held.way, entry)]:
                gone += self._not_there(held.way, ours)
            return self._mend(held.way, gone) if gone else []

    def _is_ours(self, way: Way, entry: Entry) -> bool:
        """Tell whether an entry is to be renewed. One of UDP always is: packets give it more time, never less."""
        return entry.untouched if way.protocol == "tcp" else entry.timeout_s < self._term_s

    def _not_there(self, way: Way, ports: Sequence[int]) -> list[int]:
        there = self._entries.renew(way, ports, self._term_s)
        return [port for port, renewed in zip(ports, there, strict=True) if not renewed]

    def _mend(self, way: Way, gone: Sequence[int]) -> list[int]:
        """Make entries again; return the ports that others have, which are kept no longer."""
        made = self._entries.insert(way, gone, self._term_s)
        lost = [port for port, again in zip(gone, made, strict=True) if not again]
        self.mended += len(gone) - len(lost)
        self._kept[way].difference_update(lost)
        return lost
