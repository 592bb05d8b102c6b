"""Keeps the entries of held leases alive: a thread that looks at them, renews them, and mends what is gone."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from nat_rewriter.errors import NatctlError
from nat_rewriter.kernel.lease_ends import Ends, LeaseEnds
from nat_rewriter.kernel.lease_entries import Entry, LeaseEntries, Way

PASSES_A_TERM = 3  # an entry is renewed when a third of its time is over
_AT_ONCE = 64
_NOTHING = Ends([], overrun=False)
_log = logging.getLogger("nat_rewriter.lease")


class Held(NamedTuple):
    """What is kept: ports of one way."""

    way: Way
    ports: Sequence[int]


class Keeper:
    """Renews entries before their time is over, so that they end soon after their process, whatever its end.

    An entry that is gone (deleted by hand, by a full table, or by a reset that met a socket which had taken it over) is
    made again when conntrack tells of it; where it could not tell, at the next look, after a third of the term at most.
    ``lost`` is called where a NAT flow has the tuple by then. An entry that a TCP socket has taken over is the kernel's
    to time. To be made before the entries that it keeps: what was made earlier may have no event.
    """

    def __init__(
        self, entries: LeaseEntries, ends: LeaseEnds, term_s: int, lost: Callable[[Way, int], None]
    ) -> None:  # fmt: skip
        self.mended = 0
        self._entries, self._ends, self._term_s, self._lost = entries, ends, term_s, lost
        self._kept: dict[Way, set[int]] = {}
        self._lock = threading.Lock()  # held while entries are looked at and renewed: never for one that was let go
        self._closing = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
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
        os.eventfd_write(self._closing, 1)
        if self._thread is not None:
            self._thread.join()
        self._ends.close()
        os.close(self._closing)

    def _run(self) -> None:
        awaited = select.poll()
        awaited.register(self._closing, select.POLLIN)
        awaited.register(self._ends, select.POLLIN)
        every_s = self._term_s / PASSES_A_TERM
        due = time.monotonic() + every_s
        while True:
            ready = {descriptor for descriptor, _ in awaited.poll(max(0.0, due - time.monotonic()) * 1000)}
            if self._closing in ready:
                return
            ended = self._ends.read() if ready else _NOTHING
            if ended.overrun or time.monotonic() >= due:
                due = time.monotonic() + every_s
                self._look_after(self._all_kept())
            elif ended.entries:
                self._look_after(self._kept_of(ended.entries))

    def _look_after(self, some: Iterable[Held]) -> None:
        """Look at entries once."""
        try:
            for held in _portions(some):
                for port in self._renew(held):
                    self._lost(held.way, port)
        except NatctlError as error:  # the next pass tries again, before the time of any entry is over
            _log.warning("leases could not be renewed: %s", error)

    def _all_kept(self) -> list[Held]:
        with self._lock:
            return [Held(way, tuple(ports)) for way, ports in self._kept.items()]

    def _kept_of(self, ended: Iterable[tuple[Way, int]]) -> list[Held]:
        found: dict[Way, list[int]] = {}
        with self._lock:
            for way, port in ended:
                if port in self._kept.get(way, ()):
                    found.setdefault(way, []).append(port)
        return [Held(way, ports) for way, ports in found.items()]

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


def _portions(some: Iterable[Held]) -> Iterator[Held]:
    for held in some:
        for start in range(0, len(held.ports), _AT_ONCE):
            yield Held(held.way, held.ports[start : start + _AT_ONCE])
