"""Who used which slice when, and whether it was allowed to: a judge who has never heard of natctl.

Two witnesses are heard. A capture at the upstream says which host sent a packet, and from which port. A watch on etcd
says what each host holds. A third, whoever makes hosts fail, says from when on a host cannot have asked for more time.

All times are of one clock, in seconds. A watch that is late makes nobody guilty: nothing is judged before the watch has
told all that was so at the time, and a term begins when etcd gave it, not when that was heard.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from netns_lab.store_watch import Revision


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
    """From one time to another.

    What was handed over by a ``giver``, all at once, need not rest after that host's use. ``lapsed``: the lease ended.
    """

    begin: float
    end: float = inf
    giver: str = ""
    lapsed: bool = False


class Breach(NamedTuple):
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
    """Hears what was sent and who held what, and tells what was not allowed.

    - No slice is used by two hosts, one within ``rest_s`` of the other, or after it was handed over to the other.
    - None is used by a host that does not hold it by etcd's word.
    - None is used by a host that could not ask etcd for ``ttl_s``.

    etcd may end a lease that it has just prolonged (issue 15247: its leader stood still, and woke). Where that may be,
    whoever held it knows only when it asks again, and the rest of the slice may be short: such uses are counted, and
    are no breach. That one host uses the slice after another has begun is one all the same.
    """

    def __init__(self, slice_size: int, ttl_s: float, rest_s: float) -> None:
        self.slice_size, self.ttl_s, self.rest_s = slice_size, ttl_s, rest_s
        self.breaches: list[Breach] = []
        self.packets: Counter[str] = Counter()  # by host
        self.changes = 0  # how often a slice went on to another host
        self.handed_over = 0  # by one change of the store, from host to host
        self.unaware = 0  # packets after a lease that etcd may have ended before its time
        self.short_rests = 0  # of slices after such packets
        self._waiting: deque[Use] = deque()
        self._last_user: dict[Port, Use] = {}
        self._held: dict[str, set[Port]] = {}  # by POOL/HOST; a slice is named by its first port
        self._terms: dict[tuple[str, Port], deque[Term]] = {}
        self._silence: dict[str, _Silence] = {}
        self._doubts: deque[Term] = deque(maxlen=16)
        self._revision, self._known_until = 0, 0.0
        self._lock = threading.Lock()

    # witnesses

    def used(self, uses: Iterable[Use]) -> None:
        """Packets were sent."""
        with self._lock:
            self._waiting.extend(uses)

    def changed(self, since: float, until: float, revision: Revision) -> None:
        """The store was changed, between two times; each revision may be told several times."""
        with self._lock:
            if revision.number <= self._revision:
                return
            self._revision = revision.number
            held = {name: {Port(*each) for each in slices or ()} for name, slices in revision.holdings.items()}
            gone = {name: self._held.get(name, set()) - slices for name, slices in held.items()}
            givers = {first: _host(name) for name, slices in gone.items() for first in slices}
            for name, slices in gone.items():
                self._end_terms(_host(name), slices, until, revision.holdings[name] is None)
            for name, slices in held.items():
                new = slices - self._held.get(name, set())
                self._begin_terms(_host(name), new, since, givers)
            self._held |= held

    def heard_all(self, until: float) -> None:
        """All changes of the store up to a time have been told."""
        with self._lock:
            self._known_until = max(self._known_until, until)

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

    def doubted(self, since: float, until: float) -> None:
        """Between two times etcd may end leases before their time."""
        with self._lock:
            self._doubts.append(Term(since, until))

    def _end_terms(self, host: str, slices: Iterable[Port], time: float, lapsed: bool) -> None:
        for first in slices:
            terms = self._terms[host, first]
            terms.append(terms.pop()._replace(end=time, lapsed=lapsed))

    def _begin_terms(self, host: str, slices: Iterable[Port], time: float, givers: dict[Port, str]) -> None:
        for first in slices:
            term = Term(time, giver=givers.get(first, ""))
            self.handed_over += bool(term.giver)
            self._terms.setdefault((host, first), deque(maxlen=8)).append(term)

    # verdicts

    def judge(self) -> list[Breach]:
        """Judge what was sent up to the time of which all is known; return what was found in it."""
        with self._lock:
            found = [breach for use in self._due() for breach in self._breaches_of(use)]
        self.breaches += found
        return found

    def has_judged(self, until: float) -> bool:
        """Tell whether all is known up to a time, and nothing of before waits for its verdict."""
        with self._lock:
            return self._known_until >= until and not (self._waiting and self._waiting[0].time < until)

    def holders(self) -> dict[str, list[Port]]:
        """Return what each host holds now."""
        with self._lock:
            held: dict[str, list[Port]] = {}
            for name, slices in self._held.items():
                held.setdefault(_host(name), []).extend(slices)
            return {host: sorted(slices) for host, slices in held.items() if slices}

    def _due(self) -> Iterator[Use]:
        while self._waiting and self._waiting[0].time <= self._known_until:
            yield self._waiting.popleft()

    def _breaches_of(self, use: Use) -> Iterator[Breach]:
        self.packets[use.host] += 1
        first = Port(use.port.address, use.port.number - use.port.number % self.slice_size)
        terms = self._terms.get((use.host, first), ())
        term = next((each for each in terms if each.begin <= use.time <= each.end), None)
        yield from self._breaches_of_rest(use, first, term)
        if term is None and self._cannot_know(use, terms):
            self.unaware += 1
        elif term is None:
            ended = f"since {use.time - terms[-1].end:.3f} s" if terms else "and never had"
            yield Breach(use, f"by etcd's word it does not hold the slice, {ended}")
        for silence in self._silences(use.host):
            if silence.begin + self.ttl_s < use.time < silence.end:
                yield Breach(use, f"it has not been able to renew for {use.time - silence.begin:.3f} s")

    def _breaches_of_rest(self, use: Use, first: Port, term: Term | None) -> Iterator[Breach]:
        before = self._last_user.get(first)
        self._last_user[first] = use
        if before is None or before.host == use.host:
            return
        self.changes += 1
        if use.time - before.time >= self.rest_s or (term and term.giver == before.host):
            return
        if term and self._cannot_know(before, self._terms.get((before.host, first), ())):
            self.short_rests += 1
            return
        ago = f"{use.time - before.time:.3f} s ago"
        yield Breach(use, f"{before.host} used the slice {ago}, and it has to rest for {self.rest_s} s")

    def _cannot_know(self, use: Use, terms: Iterable[Term]) -> bool:
        """Tell whether a host may hold a term for its own still, because etcd may have ended it before its time."""
        ends = [term.end for term in terms if term.lapsed and term.end < use.time <= term.end + self.ttl_s]
        return any(doubt.begin <= end <= doubt.end for end in ends for doubt in self._doubts)

    def _silences(self, host: str) -> Iterator[Term]:
        if silence := self._silence.get(host):
            yield from silence.past
            if silence.reasons:
                yield Term(silence.since)


def _host(name: str) -> str:
    """Return the host of POOL/HOST."""
    return name.partition("/")[2]
