"""A fleet that is larger than any at hand, by simulation: hosts that begin, and a cluster that answers in turn.

The cluster is a queue with so many processors; what a question costs was measured on the small one. A host that gets
no answer in time asks again as natctl does: the next endpoint at once, and after the last of them with its next step.
What it no longer waits for is answered all the same: nobody tells etcd.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

ENDPOINTS = 3
TIMEOUT_S = 3.0
GIVEN_UP_S = 1800.0
Pause = Callable[[int, random.Random], float]  # after so many failures: seconds


class Storm(NamedTuple):
    """What became of hosts that began."""

    hosts: int
    spread_s: float
    half_s: float  # until half of them held what they wanted
    all_s: float
    asked: int
    in_vain: int  # answers that nobody waited for any more


@dataclass(slots=True)
class _Host:
    left: int  # questions until it holds something
    unanswered: int = 0  # endpoints that did not answer its present question in time
    failures: int = 0  # steps that came to nothing, one after the other


class Cluster:
    """A queue with several processors; counts what it is asked."""

    def __init__(self, processors: int, cost_s: float) -> None:
        self._free_at, self._cost_s = [0.0] * processors, cost_s
        self.asked = self.in_vain = 0

    def answer_at(self, now: float) -> float | None:
        """Return when a question of this moment is answered, None where nobody waits for that any more."""
        answered = max(now, heapq.heappop(self._free_at)) + self._cost_s
        heapq.heappush(self._free_at, answered)
        self.asked += 1
        if answered - now <= TIMEOUT_S:
            return answered
        self.in_vain += 1
        return None


def storm(hosts: int, cluster: Cluster, *, questions: int, spread_s: float, pause_s: Pause, seed: int = 1) -> Storm:
    """Return when hosts that begin within a time hold their slices, each by so many questions one after the other.

    ``pause_s``: how long a host waits after so many failures, in seconds.
    """
    chance = random.Random(seed)
    fleet = [_Host(questions) for _ in range(hosts)]
    events = [(chance.uniform(0, spread_s), number) for number in range(hosts)]
    heapq.heapify(events)
    done = list[float]()
    while events and events[0][0] < GIVEN_UP_S:
        now, number = heapq.heappop(events)
        host = fleet[number]
        answered = cluster.answer_at(now)
        if answered is None:
            heapq.heappush(events, (now + TIMEOUT_S + _unanswered(host, questions, chance, pause_s), number))
            continue
        host.left, host.unanswered = host.left - 1, 0
        if host.left:
            heapq.heappush(events, (answered, number))
        else:
            done.append(answered)
    return Storm(hosts, spread_s, _nth(done, hosts // 2), _nth(done, hosts - 1), cluster.asked, cluster.in_vain)


def _unanswered(host: _Host, questions: int, chance: random.Random, pause_s: Pause) -> float:
    """Return how long a host waits before it asks the next endpoint, or all of them anew."""
    host.unanswered += 1
    if host.unanswered < ENDPOINTS:
        return 0.0
    host.failures += 1
    host.left, host.unanswered = questions, 0
    return pause_s(host.failures, chance)


def _nth(times: list[float], place: int) -> float:
    return sorted(times)[place] if place < len(times) else float("inf")
