"""How many slices a host should have, by how its slices are used; and how long it waits for them in vain."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from nat_rewriter.model.pools import Demand, Pool
from nat_rewriter.model.watching import SliceUse

_LONGEST_STEPS = 10


class Step(NamedTuple):
    """What to do next: take so many more slices, or give back the one of that name."""

    take: int = 0
    give_back: str | None = None


STAY = Step()


def next_step(pool: Pool, demand: Demand, uses: Sequence[SliceUse]) -> Step:
    """Return what a host that has these slices of a pool should do. One slice at a time, so that the effect is seen.

    A slice is given back only where the others stay well below the high mark with its flows on top.
    """
    if len(uses) < demand.least:
        return Step(take=demand.least - len(uses))
    shares = {use.name: share_of(use) for use in uses}
    if uses and min(shares.values()) >= demand.high_water and len(uses) < pool.per_host:
        return Step(take=1)
    if len(uses) <= max(demand.least, 0) or max(shares.values()) >= demand.low_water:
        return STAY
    least_used = min(uses, key=lambda use: (use.flows, use.name)).name
    others = len(uses) - 1
    if others and (sum(shares.values()) / others) >= demand.high_water:
        return STAY
    return Step(give_back=least_used)


def share_of(use: SliceUse) -> float:
    """Return how full a slice is towards its busiest destination, of the ports that a new flow could find."""
    return use.used / max(1, use.used + use.findable)


def pause_in_vain_s(step_s: float, failures: int, chance: random.Random) -> float:
    """Return for how long a host waits that has nothing, and was given nothing so many times in a row.

    Twice as long each time, by chance, up to ten steps. Where thousands of hosts begin at once they ask for more than a
    store can answer in time; if all of them asked again with each step, none would ever be answered.
    """
    return step_s * min(_LONGEST_STEPS, 1 << failures) * chance.uniform(0.5, 1.0)
