"""Which port of a slice comes next towards one destination."""

from __future__ import annotations

import math
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import accumulate

from nat_rewriter.kernel.lease_entries import Way
from nat_rewriter.model.slices import PortRange

# Destinations that are remembered before the oldest are forgotten, which takes twice as long as a server may remember
# a connection.
_POOLS, _RESTS_S = 4096, 240.0


class PortPool:
    """The ports of a slice towards one destination: never used ones first, in an order of chance, then oldest first.

    What comes back goes to the end of the line, so that a port rests for as long as the slice allows: the server may
    remember the connection before (TIME_WAIT). A port that is out is in no line; who takes one gives it back.
    """

    def __init__(self, ranges: Sequence[PortRange], chance: random.Random | None = None) -> None:
        chance = chance or random.SystemRandom()
        self._ranges = tuple(ranges)
        self._ends = list(accumulate(map(len, self._ranges)))
        self.size = self._ends[-1]
        self._place = chance.randrange(self.size)
        self._step = _coprime_step(self.size, chance)
        self._fresh = self.size
        self._freed: deque[int] = deque()
        self.touched = time.monotonic()

    @property
    def available(self) -> int:
        """How many ports are not out."""
        return self._fresh + len(self._freed)

    @property
    def all_back(self) -> bool:
        """Whether no port is out."""
        return self.available == self.size

    def take(self, count: int) -> list[int]:
        """Take up to ``count`` ports."""
        self.touched = time.monotonic()
        ports: list[int] = []
        while len(ports) < count and self._fresh:
            ports.append(self._port_at(self._place))
            self._place = (self._place + self._step) % self.size
            self._fresh -= 1
        while len(ports) < count and self._freed:
            ports.append(self._freed.popleft())
        return ports

    def give_back(self, ports: Sequence[int]) -> None:
        """Put ports at the end of the line: used just now, or found in use by others."""
        self.touched = time.monotonic()
        self._freed.extend(ports)

    def _port_at(self, place: int) -> int:
        before = 0
        for ports, end in zip(self._ranges, self._ends, strict=True):
            if place < end:
                return ports.first + place - before
            before = end
        raise IndexError(place)


def _coprime_step(size: int, chance: random.Random) -> int:
    """Return a step that leads once around all places."""
    while True:
        step = chance.randrange(1, size + 1)
        if math.gcd(step, size) == 1:
            return step


class PortPools:
    """The pools of all slices and destinations that leases were asked of. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pools: dict[tuple[str, Way], PortPool] = {}

    def available(self, name: str, way: Way, ranges: Sequence[PortRange]) -> int:
        """Return how many ports of a slice, by name, are not out towards a destination."""
        with self._lock:
            return self._pool(name, way, ranges).available

    def take(self, name: str, way: Way, ranges: Sequence[PortRange], count: int) -> list[int]:
        """Take up to ``count`` ports of a slice."""
        with self._lock:
            return self._pool(name, way, ranges).take(count)

    def give_back(self, name: str, way: Way, ports: Sequence[int]) -> None:
        """Put ports that were taken at the end of their line."""
        with self._lock:
            if pool := self._pools.get((name, way)):
                pool.give_back(ports)

    def _pool(self, name: str, way: Way, ranges: Sequence[PortRange]) -> PortPool:
        place = name, way
        if place not in self._pools:
            if len(self._pools) >= _POOLS:
                self._forget()
            self._pools[place] = PortPool(ranges)
        return self._pools[place]

    def _forget(self) -> None:
        """Give up the memory of destinations where every connection is long over."""
        old = time.monotonic() - _RESTS_S
        for place in [place for place, pool in self._pools.items() if pool.all_back and pool.touched < old]:
            del self._pools[place]
