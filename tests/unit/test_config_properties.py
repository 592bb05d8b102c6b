"""Whatever a file says, the answer is a policy or a list of problems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nat_rewriter.config import check_document, read_policy
from nat_rewriter.config.ports import overlaps
from nat_rewriter.errors import ConfigError, Problem
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.slices import PortRange

KEYS = """
    version controller slice snat dnat table coexist guard srcnat_priority name address ports psid protocols
    dstnat_priority socket_ports offset length id iifname oifname source destination mark slices spread exclude
    exclude_source timestamps to
"""
WORDS = """
    ams-1 warp natctl chain off confine split drop client keep tcp icmp eth0 eth* 198.51.100.10 2001:db8::1
    10.0.0.0/24 10.0.0.1/24 ::/0 9000-9009 9000 9009-9000 10.0.0.2:80 [2001:db8::2]:80 [::]:0 ::ffff:1.2.3.4 1.2.3.4%a
"""
words = st.sampled_from(WORDS.split())

scalars = (
    words
    | st.text(max_size=20)
    | st.integers()
    | st.integers(-2, 70000)
    | st.booleans()
    | st.floats()
    | st.datetimes()
    | st.dates()
    | st.times()
)
keys = st.sampled_from(KEYS.split()) | st.text(max_size=10)
junk = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6), max_leaves=12
)


def tables(*known: str, **fixed: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Tables that have the known keys more often than not, so that the checks behind the first are reached."""
    sound = {key: st.just(value) | junk for key, value in fixed.items()}
    return st.fixed_dictionaries(sound, optional=dict.fromkeys(known, junk | words))


slices = tables("protocols", "socket_ports", name="ams-1", address="198.51.100.10", ports=["9000-9009"]) | tables(
    "ports", name="ams-2", address="2001:db8::1", psid={"offset": 6, "length": 8, "id": 52}
)
documents = st.fixed_dictionaries(
    {"version": st.just(1), "slice": st.lists(slices, max_size=3) | junk},
    optional={
        "controller": tables("table", "guard", "srcnat_priority", coexist="split") | junk,
        "snat": st.lists(
            tables("iifname", "source", "mark", "exclude", name="warp", slices=["ams-1", "ams-2"]), max_size=3
        ),
        "dnat": st.lists(tables("ports", name="in", slice="ams-1", to="10.0.0.2"), max_size=3) | junk,
    },
)


def problems_of(read: Callable[[], Policy]) -> tuple[Problem, ...]:
    """Return the problems, none for a policy; every other exception fails the test."""
    try:
        read()
    except ConfigError as error:
        return error.problems or (Problem("", "", "", "an error without problems"),)
    return ()


def assert_each_fits_a_line(problems: tuple[Problem, ...]) -> None:
    for problem in problems:
        assert str(problem).isprintable()
        assert problem.path
        assert problem.expected.startswith("expected ")
        assert len(problem.value) <= 90


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(keys, junk, max_size=8))
def test_junk_gives_problems(document: dict[str, Any]) -> None:
    assert_each_fits_a_line(problems_of(lambda: check_document(document, "junk.toml")))


@settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow])
@given(documents)
def test_documents_that_are_nearly_sound_give_a_policy_or_problems(document: dict[str, Any]) -> None:
    assert_each_fits_a_line(problems_of(lambda: check_document(document, "junk.toml")))


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_give_a_policy_or_problems(content: bytes) -> None:
    assert_each_fits_a_line(problems_of(lambda: read_policy(content)))


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(0, 20)), max_size=12))
def test_every_claim_that_meets_an_earlier_one_is_found(sizes: list[tuple[int, int]]) -> None:
    ranges = [PortRange(first, first + more) for first, more in sizes]
    meets = any(a.overlaps(b) for i, a in enumerate(ranges) for b in ranges[:i])
    found = list(overlaps((ports, index) for index, ports in enumerate(ranges)))
    assert bool(found) == meets
    for overlap in found:
        assert overlap.earlier < overlap.later
        for claimant in (overlap.earlier, overlap.later):
            assert ranges[claimant].first <= overlap.ports.first <= overlap.ports.last <= ranges[claimant].last
