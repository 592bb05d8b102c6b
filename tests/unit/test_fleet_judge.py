"""The judge of the fleet lab: every way to use a slice wrongly is found, and its near miss is not."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest

from netns_lab.fleet_judge import Judge, Port, Use
from netns_lab.store_watch import Revision, revisions

FIRST, SECOND = Port("198.51.100.20", 8192), Port("198.51.100.20", 8704)
FIRST_6 = Port("2001:db8:198::20", 8192)
TTL_S, REST_S = 5.0, 2.0


@pytest.fixture
def judge() -> Judge:
    """A judge who knows that a holds the first slice from second 100 to 110, and b from 112 on."""
    judge = Judge(512, TTL_S, REST_S)
    tell(judge, 100.0, 1, a=[FIRST])
    tell(judge, 110.0, 2, a=[])
    tell(judge, 112.0, 3, b=[FIRST])
    return judge


def tell(judge: Judge, time: float, number: int, until: float | None = None, **slices: list[Port]) -> None:
    held: dict[str, Any] = {f"fleet/{host}": ports for host, ports in slices.items()}
    judge.changed(time, time if until is None else until, Revision(number, held))


def verdicts(judge: Judge, *uses: tuple[float, str], port: int = 8200) -> list[str]:
    judge.used(Use(time, host, Port("198.51.100.20", port)) for time, host in uses)
    judge.heard_all(1000.0)
    return [breach.why for breach in judge.judge()]


def test_a_slice_in_turns(judge: Judge) -> None:
    assert verdicts(judge, (100.1, "a"), (109.9, "a"), (112.1, "b"), (500.0, "b")) == []
    assert judge.packets == {"a": 2, "b": 2}
    assert (judge.changes, judge.handed_over) == (1, 0)
    assert judge.holders() == {"b": [FIRST]}


def test_two_at_once(judge: Judge) -> None:
    tell(judge, 113.0, 4, a=[FIRST])  # even if the store says so
    (why,) = verdicts(judge, (112.5, "b"), (114.4, "a"))
    assert "b used the slice 1.900 s ago" in why


@pytest.mark.parametrize(("time", "host"), [(110.1, "a"), (99.9, "a"), (105.0, "b"), (111.9, "b"), (105.0, "c")])
def test_without_a_term(judge: Judge, time: float, host: str) -> None:
    (why,) = verdicts(judge, (time, host))
    assert "by etcd's word it does not hold the slice" in why


def test_another_slice_than_its_own(judge: Judge) -> None:
    assert verdicts(judge, (105.0, "a"), port=8703) == []
    (why,) = verdicts(judge, (105.1, "a"), port=8704)
    assert "never had" in why


def test_another_ip_version(judge: Judge) -> None:
    tell(judge, 120.0, 4, c=[FIRST_6])
    judge.used([Use(121.0, "c", FIRST_6), Use(121.1, "b", FIRST_6)])
    judge.heard_all(1000.0)
    breaches = judge.judge()
    assert {breach.use.host for breach in breaches} == {"b"}
    assert [breach.why.split(",")[0] for breach in breaches] == [
        "c used the slice 0.100 s ago", "by etcd's word it does not hold the slice",
    ]  # fmt: skip


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


def test_handed_over(judge: Judge) -> None:
    tell(judge, 120.0, 4, b=[], c=[FIRST])
    assert verdicts(judge, (119.9, "b"), (120.1, "c"), (121.0, "c")) == []
    assert (judge.changes, judge.handed_over) == (1, 1)


def test_used_by_the_giver_after_the_taker(judge: Judge) -> None:
    tell(judge, 120.0, 4, until=120.5, b=[], c=[FIRST])
    (why,) = verdicts(judge, (120.1, "c"), (120.2, "b"))  # when the watch has not told of it yet
    assert "c used the slice 0.100 s ago" in why


def test_handed_over_by_another_than_the_last_user(judge: Judge) -> None:
    tell(judge, 120.0, 4, b=[], c=[FIRST])
    tell(judge, 120.1, 5, c=[], d=[FIRST])
    (why,) = verdicts(judge, (119.9, "b"), (120.2, "d"))
    assert "b used the slice 0.300 s ago" in why


def test_a_lease_that_etcd_ended_too_soon(judge: Judge) -> None:
    judge.doubted(119.0, 121.0)
    judge.changed(120.0, 120.2, Revision(4, {"fleet/b": None}))
    (why,) = verdicts(judge, (121.0, "b"), (125.1, "b"), (125.3, "b"))
    assert "by etcd's word it does not hold the slice, since 5.100 s" in why
    assert judge.unaware == 2


def test_a_lease_that_ended_in_time(judge: Judge) -> None:
    judge.doubted(119.0, 121.0)
    tell(judge, 120.0, 4, b=[])  # given back
    judge.changed(130.0, 130.2, Revision(5, {"fleet/b": None}))
    assert len(verdicts(judge, (121.0, "b"), (130.3, "b"))) == 2
    assert judge.unaware == 0


def test_a_lease_that_etcd_ended_too_soon_and_another_user(judge: Judge) -> None:
    judge.doubted(119.0, 121.0)
    judge.changed(120.0, 120.2, Revision(4, {"fleet/b": None}))
    tell(judge, 120.3, 5, a=[FIRST])
    (why,) = verdicts(judge, (121.0, "b"), (122.0, "a"), (122.1, "b"))
    assert "a used the slice 0.100 s ago" in why
    assert judge.short_rests == 1


def test_a_late_watch_makes_nobody_guilty() -> None:
    judge = Judge(512, TTL_S, REST_S)
    judge.used([Use(100.3, "a", FIRST)])
    judge.heard_all(100.2)
    assert judge.judge() == []
    assert not judge.packets
    assert not judge.has_judged(100.4)
    tell(judge, 100.2, 1, until=108.0, a=[FIRST])
    judge.heard_all(100.5)
    assert judge.judge() == []
    assert judge.packets == {"a": 1}
    assert judge.has_judged(100.4)


def test_a_late_watch_makes_nobody_innocent() -> None:
    judge = Judge(512, TTL_S, REST_S)
    tell(judge, 100.2, 1, until=108.0, a=[FIRST])
    (why,) = verdicts(judge, (100.1, "a"))
    assert "by etcd's word it does not hold the slice" in why


def test_a_breach_is_told_once(judge: Judge) -> None:
    judge.used([Use(111.0, "a", FIRST)])
    assert judge.judge() == []
    judge.heard_all(111.5)
    assert len(judge.judge()) == 1
    assert judge.judge() == []
    assert len(judge.breaches) == 1


def test_a_revision_counts_once(judge: Judge) -> None:
    tell(judge, 120.0, 2, a=[])  # another node is late
    tell(judge, 121.0, 4, b=[FIRST, SECOND])
    tell(judge, 122.0, 4, b=[])
    assert judge.holders() == {"b": [FIRST, SECOND]}


def test_what_etcd_says() -> None:
    held = '{"short": 1, "blocks": [["198.51.100.20", 8192, 1700000000]]}'
    events = [
        event("lab/clock/100.65.1.2", 6, "1700000000.25"),
        event("natctl/host/fleet/h1", 7, '{"blocks": []}'),
        event("natctl/host/fleet6/h2", 7, held),
        {"type": 1, **event("natctl/host/fleet/h1", 8)},
        event("natctl/here/h1", 9, "{}"),
    ]
    assert list(revisions({"Events": events})) == [
        Revision(6, {}, 1700000000.25),
        Revision(7, {"fleet/h1": [], "fleet6/h2": [("198.51.100.20", 8192)]}),
        Revision(8, {"fleet/h1": None}),
        Revision(9, {}),
    ]
    assert list(revisions({"Created": True})) == []


def event(key: str, revision: int, value: str = "") -> dict[str, Any]:
    encoded = {"key": b64encode(key.encode()).decode(), "value": b64encode(value.encode()).decode()}
    return {"kv": {"mod_revision": revision, **encoded}}
