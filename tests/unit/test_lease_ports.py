"""Which port comes next, which strategy is meant, and how destinations are spelled: without a kernel."""

from __future__ import annotations

import random
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from nat_rewriter.cli.main import run
from nat_rewriter.errors import UsageError
from nat_rewriter.kernel.lease_entries import Way
from nat_rewriter.lease.destinations import literal_address, parse_destination
from nat_rewriter.lease.ports import PortPool, PortPools
from nat_rewriter.lease.strategies import AUTO, COMPLETE, STRATEGIES, Holder, find_strategy
from nat_rewriter.model.policy import Coexist
from nat_rewriter.model.slices import PortRange

RANGES = some.lists(some.integers(1, 40), min_size=1, max_size=5).map(
    lambda sizes: [PortRange(100 * at, 100 * at + size - 1) for at, size in enumerate(sizes, 1)]
)
WAY = Way("tcp", ip_address("198.51.100.10"), ip_address("203.0.113.1"), 443)
DOCS = Path(__file__).parents[2] / "docs"


def ports_of(ranges: list[PortRange]) -> list[int]:
    return [port for ports in ranges for port in range(ports.first, ports.last + 1)]


@given(RANGES, some.integers(0, 1 << 32), some.integers(1, 9))
def test_every_port_comes_once_before_any_comes_again(ranges: list[PortRange], seed: int, at_once: int) -> None:
    pool = PortPool(ranges, random.Random(seed))
    taken: list[int] = []
    while ports := pool.take(at_once):
        taken += ports
    assert sorted(taken) == ports_of(ranges)
    assert pool.available == 0


@given(RANGES, some.integers(0, 1 << 32))
def test_what_came_back_first_is_taken_first_after_all_fresh_ones(ranges: list[PortRange], seed: int) -> None:
    pool = PortPool(ranges, random.Random(seed))
    first = pool.take(pool.size)
    pool.give_back(first[::-1])
    assert pool.take(pool.size) == first[::-1]


def test_fresh_ports_come_before_those_that_were_used() -> None:
    pool = PortPool([PortRange(1, 3)], random.Random(1))
    (used,) = pool.take(1)
    pool.give_back([used])
    assert pool.take(3)[-1] == used


def test_orders_differ_between_pools() -> None:
    orders = {tuple(PortPool([PortRange(1, 1000)]).take(5)) for _ in range(20)}
    assert len(orders) > 15


def test_pools_are_apart_by_slice_and_way() -> None:
    pools, ranges = PortPools(), [PortRange(1, 2)]
    other = Way("tcp", WAY.src, WAY.dst, 444)
    assert len(pools.take("a", WAY, ranges, 5)) == 2
    assert pools.available("a", WAY, ranges) == 0
    assert pools.available("a", other, ranges) == pools.available("b", WAY, ranges) == 2


def test_ways_are_equal_by_what_they_say() -> None:
    same = Way("tcp", ip_address("198.51.100.10"), ip_address("203.0.113.1"), 443)
    assert (WAY, hash(WAY)) == (same, hash(same))
    assert Way("udp", WAY.src, WAY.dst, WAY.dport) != WAY
    assert str(WAY.at(9000)) == "tcp 198.51.100.10:9000 203.0.113.1:443"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("203.0.113.1:443", ("203.0.113.1", 443)),
        ("[2001:db8::1]:1", ("2001:db8::1", 1)),
        ("example.com:65535", ("example.com", 65535)),
    ],
)
def test_destinations(text: str, wanted: tuple[str, int]) -> None:
    assert parse_destination(text) == wanted


@pytest.mark.parametrize(
    "text", ["", ":", "host", "host:", ":443", "host:0", "host:65536", "host:+1", "host:１", "2001:db8::1:443", "h:1e2"]
)
def test_what_is_no_destination(text: str) -> None:
    with pytest.raises(UsageError, match="expected HOST:PORT, an IPv6 address in brackets"):
        parse_destination(text)


def test_literal_addresses_are_of_the_slices_version() -> None:
    assert literal_address("203.0.113.1", 4) == ip_address("203.0.113.1")
    assert literal_address("example.com", 4) is None
    with pytest.raises(UsageError, match="expected an IPv6 address"):
        literal_address("203.0.113.1", 6)


@pytest.mark.parametrize("coexist", list(Coexist))
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("fast_open", [True, False])
def test_auto_keeps_nat_off_wherever_nat_may_come(coexist: Coexist, protocol: str, fast_open: bool) -> None:
    chosen = find_strategy(AUTO, protocol, coexist, fast_open=fast_open)
    assert protocol in chosen.protocols
    if coexist is Coexist.SPLIT:
        assert chosen.needs == ""
    else:
        assert chosen.against_nat
        assert chosen.against_sockets


def test_the_complete_strategy_has_the_placeholder_that_fits() -> None:
    holders = {
        (protocol, fast_open): find_strategy("complete", protocol, Coexist.OFF, fast_open=fast_open).holder
        for protocol in ("tcp", "udp")
        for fast_open in (True, False)
    }
    assert holders == {
        ("tcp", True): Holder.FAST_OPEN,
        ("tcp", False): Holder.REPAIR,
        ("udp", True): Holder.EXCLUSIVE,
        ("udp", False): Holder.EXCLUSIVE,
    }
    assert COMPLETE.protects == "NAT flows and local sockets"


def test_help_and_documentation_say_what_strategies_say(capsys: pytest.CaptureFixture[str]) -> None:
    run(["lease", "--help"])
    helped = " ".join(capsys.readouterr().out.split())
    documented = " ".join((DOCS / "leases.md").read_text(encoding="utf-8").split())
    for each in STRATEGIES.values():
        assert f"{each.name}: {each.summary}. Protects against {each.protects}. Not: {each.gap}." in helped
        assert f"| `{each.name}` | {each.summary} | {each.protects} | {each.gap} |" in documented
