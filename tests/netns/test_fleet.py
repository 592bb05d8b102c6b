"""A fleet of five hosts on a cluster of three etcd nodes, judged at the upstream: one fleet for all of this file.

``NATCTL_LONG=1`` plays all scenarios, and 1,000 rounds of random faults. ``NATCTL_ROUNDS`` and ``NATCTL_SEED`` play so
many, those of a seed.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from random import Random

import pytest

from nat_rewriter.errors import UnsupportedFeature
from netns_lab.fleet import Fleet
from netns_lab.fleet_faults import draw_round, play_round
from netns_lab.narrator import PlainNarrator
from netns_lab.scenario import FleetScenario, list_scenarios

LONG = bool(os.environ.get("NATCTL_LONG"))
ROUNDS = int(os.environ.get("NATCTL_ROUNDS") or (1000 if LONG else 1))
SEED = int(os.environ.get("NATCTL_SEED") or time.time_ns() % 1_000_000)
RECOVERY_EVERY = 10  # rounds
# Those that are much like others are played where there is time.
LEFT_OUT = set() if LONG else {"fleet-cut-off", "fleet-exhausted"}
SCENARIOS = [each for each in list_scenarios() if isinstance(each, FleetScenario) and each.name not in LEFT_OUT]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    try:
        with Fleet() as made:
            yield made
    except UnsupportedFeature as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_scenario_goes_as_it_says(fleet: Fleet, scenario: FleetScenario) -> None:
    told = io.StringIO()
    scenario.play_in(fleet, PlainNarrator(told))
    assert "  ok   " in told.getvalue()
    assert "FAIL" not in told.getvalue()
    assert fleet.judge.breaches == []


def test_nothing_is_used_twice_whatever_fails(fleet: Fleet, capfd: pytest.CaptureFixture[str]) -> None:
    chance, known = Random(SEED), len(fleet.judge.breaches)
    assert fleet.wait_for_work() == []
    for number in range(1, ROUNDS + 1):
        faults, transfers = draw_round(chance), len(fleet.transfers)
        play_round(fleet, faults)
        told = [f"{time.strftime('%H:%M:%S')} seed {SEED} round {number}: {'; '.join(map(str, faults))}"]
        told += [f"  {transfer}" for transfer in fleet.transfers[transfers:]]
        if number % RECOVERY_EVERY == 0 or number == ROUNDS:
            began = time.monotonic()
            assert fleet.wait_for_work() == [], (SEED, number, fleet.account())
            told.append(f"all work after {time.monotonic() - began:.1f} s: {fleet.account()}")
        told += [f"  BREACH {breach}" for breach in fleet.judge.breaches[known:]]
        known = len(fleet.judge.breaches)
        with capfd.disabled():
            print("\n".join(told), flush=True)
        assert len(faults) > 1 or not any(transfer.lost for transfer in fleet.transfers[transfers:]), (SEED, number)
    fleet.hear_out()
    assert fleet.judge.breaches == []
    assert all(fleet.judge.packets[f"host{number}"] for number in fleet.hosts)


def test_the_judge_sees_what_is_used_without_a_fence(fleet: Fleet) -> None:
    assert fleet.wait_for_work() == []
    fleet.freeze(1)
    fleet.hosts[1].nft("delete table inet natctl_terms")
    reasons = ("by etcd's word it does not hold the slice", "has not been able to renew", "and it has to rest")
    end = time.monotonic() + 60
    while not all(any(reason in breach.why for breach in fleet.judge.breaches) for reason in reasons):
        assert time.monotonic() < end, [str(breach) for breach in fleet.judge.breaches[:5]]
        fleet.watch_for(1)
    assert {breach.use.host for breach in fleet.judge.breaches if "has to rest" not in breach.why} == {"host1"}
    versions = {6 if ":" in breach.use.port.address else 4 for breach in fleet.judge.breaches}
    assert versions == {4, 6}
    fleet.wake(1)
    assert fleet.wait_for_work() == []
