"""The judge of the fleet lab: every way to use a slice wrongly is found, and its near miss is not."""

from __future__ import annotations

import pytest

from netns_lab.fleet_judge import Judge, Port, Use
from netns_lab.store_watch import Holding, holdings

FIRST, SECOND = Port("198.51.100.20", 8192), Port("198.51.100.20", 8704)
TTL_S, REST_S = 5.0, 2.0


@pytest.fixture
def judge() -> Judge:
    """A judge who knows that a holds the first slice from second 100 to 110, and b from 112 on."""
    judge = Judge(512, TTL_S, REST_S)
    judge.holds(100.0, 1, "a", [FIRST])
    judge.holds(110.0, 2, "a", [])
    judge.holds(112.0, 3, "b", [FIRST])
    return judge


def verdicts(judge: Judge, *uses: tuple[float, str], port: int = 8200) -> list[str]:
    judge.used(Use(time, host, Port("198.51.100.20", port)) for time, host in uses)
    return [breach.why for breach in judge.judge(1000.0)]


def test_a_slice_in_turns(judge: Judge) -> None:
    assert verdicts(judge, (100.1, "a"), (109.9, "a"), (112.1, "b"), (500.0, "b")) == []
    assert judge.packets == {"a": 2, "b": 2}
    assert judge.changes == 1
    assert judge.holders() == {"b": [FIRST]}


def test_two_at_once(judge: Judge) -> None:
    judge.holds(113.0, 4, "a", [FIRST])  # even if the store says so
    (why,) = verdicts(judge, (112.5, "b"), (114.4, "a"))
    assert "b used the slice 1.900 s ago" in why


@pytest.mark.parametrize(("time", "host"), [(110.1, "a"), (98.0, "a"), (105.0, "b"), (110.9, "b"), (105.0, "c")])
def test_without_a_term(judge: Judge, time: float, host: str) -> None:
    (why,) = verdicts(judge, (time, host))
    assert "by etcd's word it does not hold the slice" in why


def test_another_slice_than_its_own(judge: Judge) -> None:
    assert verdicts(judge, (105.0, "a"), port=8703) == []
    (why,) = verdicts(judge, (105.1, "a"), port=8704)
    assert "never had" in why


def test_after_a_silence(judge: Judge) -> None:
    judge.silenced(101.0, "a")
    judge.silenced(102.0, "a")  # for another reason as well
    judge.restored(108.0, "a")
    judge.restored(109.0, "a")
    (why,) = verdicts(judge, (105.9, "a"), (108.5, "a"), (109.1, "a"))
    assert "has not been able to renew for 7.500 s" in why


def test_a_silence_that_goes_on(judge: Judge) -> None:
    judge.silenced(200.0, "b")
    assert len(verdicts(judge, (204.9, "b"), (205.1, "b"))) == 1


def test_what_is_new_is_not_judged_yet(judge: Judge) -> None:
    judge.used([Use(111.0, "a", FIRST)])
    assert judge.judge(113.0) == []
    assert len(judge.judge(115.0)) == 1
    assert judge.judge(120.0) == []


def test_a_revision_counts_once(judge: Judge) -> None:
    judge.holds(120.0, 2, "a", [])  # another node is late
    judge.holds(121.0, 4, "b", [FIRST, SECOND])
    judge.holds(122.0, 4, "b", [])
    assert judge.holders() == {"b": [FIRST, SECOND]}


def test_what_etcd_says() -> None:
    key, value = "bmF0Y3RsL2hvc3QvZmxlZXQvaDE=", "eyJibG9ja3MiOltbIjE5OC41MS4xMDAuMjAiLDgxOTJdXX0="
    events = [
        {"kv": {"key": key, "mod_revision": 7, "value": value}},
        {"type": 1, "kv": {"key": key, "mod_revision": 8}},
    ]
    assert list(holdings({"Events": events}, "natctl/host/fleet/")) == [
        Holding(7, "h1", [("198.51.100.20", 8192)]),
        Holding(8, "h1", []),
    ]
    assert list(holdings({"Created": True}, "natctl/host/fleet/")) == []
