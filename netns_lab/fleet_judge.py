"""Who used which slice when, and whether it was allowed to: a judge who has never heard of natctl.

Two witnesses are heard. A capture at the upstream says which host sent a packet, and from which port. A watch on etcd
says what each host holds. A third, whoever makes hosts fail, says from when on a host cannot have asked for more time.
All times are of one clock, in seconds.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

# A witness who is on a busy machine may be late: a packet is judged after so long, ...
_PATIENCE_S = 3.0
# ... and a slice may be seen used so long before etcd was heard to give it.
_LATE_WATCH_S = 1.0


class Port(NamedTuple):
    """A port of a shared address."""

    address: str
    number: int


class Use(NamedTuple):
    """A packet that a host sent from a port."""

    time: float
    host: str
    port: Port
    kind: str = ""


class Term(NamedTuple):
    """From one time to another."""

    begin: float
    end: float = inf


@dataclass(frozen=True, slots=True)
class Breach:
    """A packet that should not have been sent, and why."""

    use: Use
    why: str

    def __str__(self) -> str:
        port = f"{self.use.port.address}:{self.use.port.number}"
        return f"{self.use.host} sent {self.use.kind} from {port} at {self.use.time:.3f}: {self.why}"


@dataclass(slots=True)
class _Silence:
    """Since when, and for how many reasons at a time, a host has been unable to ask; and when that was so before."""

    reasons: int = 0
    since: float = 0.0
    past: deque[Term] = field(default_factory=lambda: deque(maxlen=16))


class Judge:
    """Hears what was sent and who held what, in the order of their times, and tells what was not allowed.

    - No slice is used by two hosts, one within ``rest_s`` of the other.
    - None is used by a host that does not hold it by etcd's word.
    - None is used by a host that could not ask etcd for ``ttl_s``.
    """

    def __init__(self, slice_size: int, ttl_s: float, rest_s: float) -> None:
        self.slice_size, self.ttl_s, self.rest_s = slice_size, ttl_s, rest_s
        self.breaches: list[Breach] = []
        self.packets: Counter[str] = Counter()  # by host
        self.changes = 0  # how often a slice went on to another host
        self._waiting: deque[Use] = deque()
        self._last_user: dict[Port, Use] = {}
        self._held: dict[str, set[Port]] = {}  # a slice is named by its first port
        self._terms: dict[tuple[str, Port], deque[Term]] = {}
        self._silence: dict[str, _Silence] = {}
        self._revision = 0
        self._lock = threading.Lock()

    # witnesses

    def used(self, uses: Iterable[Use]) -> None:
        """Packets were sent."""
        with self._lock:
            self._waiting.extend(uses)

    def holds(self, time: float, revision: int, host: str, slices: Iterable[Port]) -> None:
        """From a revision of the store on a host holds these slices; each revision may be told several times."""
        with self._lock:
            if revision <= self._revision:
                return
            self._revision = revision
            before, after = self._held.get(host, set()), set(slices)
            for first in before - after:
                terms = self._terms[host, first]
                terms.append(Term(terms.pop().begin, time))
            for first in after - before:
                self._terms.setdefault((host, first), deque(maxlen=8)).append(Term(time))
            self._held[host] = after

    def silenced(self, time: float, host: str) -> None:
        """From now on a host cannot ask for time, for one reason more."""
        with self._lock:
            silence = self._silence.setdefault(host, _Silence())
            silence.since = silence.since if silence.reasons else time
            silence.reasons += 1

    def restored(self, time: float, host: str) -> None:
        """One of the reasons has gone."""
        with self._lock:
            silence = self._silence[host]
            silence.reasons -= 1
            if not silence.reasons:
                silence.past.append(Term(silence.since, time))

    # verdicts

    def judge(self, now: float) -> list[Breach]:
        """Judge what was sent up to a while ago; return what was found in it."""
        with self._lock:
            found = [breach for use in self._due(now) for breach in self._breaches_of(use)]
        self.breaches += found
        return found

    def holders(self) -> dict[str, list[Port]]:
        """Return what each host holds now."""
        with self._lock:
            return {host: sorted(slices) for host, slices in self._held.items() if slices}

    def _due(self, now: float) -> Iterator[Use]:
        while self._waiting and self._waiting[0].time <= now - _PATIENCE_S:
            yield self._waiting.popleft()

    def _breaches_of(self, use: Use) -> Iterator[Breach]:
        self.packets[use.host] += 1
        first = Port(use.port.address, use.port.number - use.port.number % self.slice_size)
        before = self._last_user.get(first)
        self._last_user[first] = use
        if before and before.host != use.host:
            self.changes += 1
            if use.time - before.time < self.rest_s:
                ago = f"{use.time - before.time:.3f} s ago"
                yield Breach(use, f"{before.host} used the slice {ago}, and it has to rest for {self.rest_s} s")
        terms = self._terms.get((use.host, first), ())
        if not any(term.begin - _LATE_WATCH_S <= use.time <= term.end for term in terms):
            ended = f"since {use.time - terms[-1].end:.3f} s" if terms else "and never had"
            yield Breach(use, f"by etcd's word it does not hold the slice, {ended}")
        for since, until in self._silences(use.host):
            if since + self.ttl_s < use.time < until:
                yield Breach(use, f"it has not been able to renew for {use.time - since:.3f} s")

    def _silences(self, host: str) -> Iterator[Term]:
        if silence := self._silence.get(host):
            yield from silence.past
            if silence.reasons:
                yield Term(silence.since)
