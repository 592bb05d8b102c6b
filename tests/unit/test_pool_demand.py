"""How many slices a host should have."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_rewriter.model.pools import Demand, Pool
from nat_rewriter.model.slices import PortRange
from nat_rewriter.model.watching import SliceUse
from nat_rewriter.pool.demand import STAY, Step, next_step, pause_in_vain_s, share_of

POOL = Pool("fleet", (ip_address("198.51.100.10"),), PortRange(1024, 65535), 1024, per_host=4)
DEMAND = Demand(least=1, high_water=0.8, low_water=0.3)


def use(name: str, used: int, flows: int | None = None, findable: int | None = None) -> SliceUse:
    free = 1024 - used
    return SliceUse(name, used if flows is None else flows, "", used, 1024, free if findable is None else findable)


def test_the_least_is_taken_whatever_the_use() -> None:
    assert next_step(POOL, DEMAND, []) == Step(take=1)
    assert next_step(POOL, Demand(least=3), [use("a", 0)]) == Step(take=2)
    assert next_step(POOL, Demand(least=0), []) == STAY


def test_one_more_when_all_are_full() -> None:
    assert next_step(POOL, DEMAND, [use("a", 820)]) == Step(take=1)
    assert next_step(POOL, DEMAND, [use("a", 1000), use("b", 100)]) == STAY
    assert next_step(POOL, DEMAND, [use(name, 1000) for name in "abcd"]) == STAY  # per_host


def test_ports_that_no_search_finds_do_not_count_as_free() -> None:
    assert next_step(POOL, DEMAND, [use("a", 700)]) == STAY
    assert next_step(POOL, DEMAND, [use("a", 700, findable=100)]) == Step(take=1)


def test_the_least_used_is_given_back() -> None:
    assert next_step(POOL, DEMAND, [use("a", 200), use("b", 50), use("c", 100)]) == Step(give_back="b")
    assert next_step(POOL, DEMAND, [use("a", 400), use("b", 0)]) == STAY
    assert next_step(POOL, DEMAND, [use("a", 0)]) == STAY


def test_nothing_is_given_back_that_would_be_taken_again() -> None:
    close = Demand(low_water=0.75, high_water=0.8)
    assert next_step(POOL, close, [use("a", 700), use("b", 700)]) == STAY


@given(
    st.lists(st.integers(0, 1024), max_size=4),
    st.integers(0, 4),
    st.floats(0.02, 1.0),
    st.floats(0.01, 0.99),
)
def test_it_stays_within_its_bounds(used: list[int], least: int, high: float, low: float) -> None:
    demand = Demand(least, high, min(low, high - 0.01))
    uses = [use(f"s{number}", each) for number, each in enumerate(used)]
    step = next_step(POOL, demand, uses)
    after = len(uses) + step.take - bool(step.give_back)
    assert min(least, len(uses)) <= after <= POOL.per_host
    assert not (step.take and step.give_back)


@pytest.mark.parametrize(("used", "findable", "share"), [(0, 0, 0.0), (10, 0, 1.0), (10, 30, 0.25)])
def test_share(used: int, findable: int, share: float) -> None:
    assert share_of(use("a", used, findable=findable)) == share


def test_who_waits_in_vain_waits_ever_longer() -> None:
    chance = random.Random(1)
    pauses = [pause_in_vain_s(6.0, failures, chance) for failures in range(12)]
    assert all(step <= pause <= 2 * step for step, pause in zip((3, 6, 12, 24), pauses[:4], strict=True))
    assert all(30 <= pause <= 60 for pause in pauses[4:])
    assert len(set(pauses)) == 12
