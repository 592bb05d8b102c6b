"""The chance to find a port, against the kernel's search played out."""

from __future__ import annotations

import random
from collections.abc import Collection
from ipaddress import ip_address

import numpy as np
import pytest
from tables import AMS, CLIENT, SERVER, SOFT, flow, flows

from nat_rewriter.detect import Observation, SliceIndex, find_findings
from nat_rewriter.detect.port_search import PortSearch
from nat_rewriter.detect.uses import UseCount, least_use
from nat_rewriter.model.findings import Kind
from nat_rewriter.model.slices import PortRange, Protocol, Slice

WIDE = PortRange(10000, 12047)
TRIALS = 4000


def made_of(*ranges: PortRange) -> Slice:
    return Slice("wide", ip_address(SOFT), ranges, (Protocol.TCP,))


def chance(used: Collection[int], *ranges: PortRange) -> float:
    ports = np.array(sorted(used), dtype=np.int64)
    return float(PortSearch([made_of(*ranges)]).chances(np.zeros(1, np.int64), np.zeros_like(ports), ports)[0])


def found_in(free: set[int], ports: PortRange, rng: random.Random) -> bool:
    """Whether nf_nat_l4proto_unique_tuple() finds a free port."""
    size = len(ports)
    attempts = min(size, 128)
    while True:
        offset = rng.getrandbits(16)
        if any(ports.first + (offset + step) % size in free for step in range(attempts)):
            return True
        if attempts >= size or attempts < 16:
            return False
        attempts //= 2


def played(used: Collection[int], *ranges: PortRange) -> float:
    rng = random.Random(7)
    free = {port for ports in ranges for port in range(ports.first, ports.last + 1)} - set(used)
    chosen = rng.choices(ranges, [len(ports) for ports in ranges], k=TRIALS)
    return sum(found_in(free, ports, rng) for ports in chosen) / TRIALS


def all_but(ports: PortRange, free: Collection[int]) -> set[int]:
    return set(range(ports.first, ports.last + 1)) - set(free)


@pytest.mark.parametrize(
    ("used", "ranges"),
    [
        pytest.param(all_but(WIDE, range(10500, 10548)), (WIDE,), id="48 side by side"),
        pytest.param(all_but(WIDE, range(10000, 10048)), (WIDE,), id="at the beginning"),
        pytest.param(all_but(WIDE, [*range(12024, 12048), *range(10000, 10024)]), (WIDE,), id="around the end"),
        pytest.param(all_but(WIDE, range(10000, 12048, 43)), (WIDE,), id="scattered"),
        pytest.param(all_but(WIDE, random.Random(3).sample(range(10000, 12048), 10)), (WIDE,), id="ten anywhere"),
        pytest.param(all_but(WIDE, [11111]), (WIDE,), id="one"),
        pytest.param(all_but(PortRange(1, 200), range(90, 140)), (PortRange(1, 200),), id="a little over 128"),
        pytest.param(set(range(10000, 11000)), (WIDE, PortRange(20000, 20099)), id="another range is empty"),
        pytest.param(all_but(WIDE, []), (WIDE, PortRange(20000, 20127)), id="another range is empty and this one full"),
    ],
)
def test_chance_is_that_of_the_search(used: set[int], ranges: tuple[PortRange, ...]) -> None:
    assert chance(used, *ranges) == pytest.approx(played(used, *ranges), abs=0.03)


def test_certain_cases() -> None:
    assert chance([], WIDE) == 1.0
    assert chance(all_but(WIDE, []), WIDE) == 0.0
    small = PortRange(9000, 9127)
    assert chance(all_but(small, [9055]), small) == 1.0
    assert chance(all_but(small, []), small) == 0.0
    assert chance([9000], PortRange(9000, 9000), PortRange(9002, 9002)) == 0.5


def test_many_destinations_at_once_are_as_one_by_one() -> None:
    rng = random.Random(5)
    slices = [made_of(WIDE, PortRange(20000, 20299)), made_of(PortRange(30000, 30999))]
    owners = [rng.randrange(2) for _ in range(40)]
    used = [
        sorted(
            rng.sample([p for ports in slices[owner].ranges for p in range(ports.first, ports.last + 1)], k=900)
        )
        for owner in owners
    ]  # fmt: skip
    places = np.repeat(np.arange(40), 900)
    together = PortSearch(slices).chances(np.array(owners), places, np.concatenate([np.array(one) for one in used]))
    alone = [chance(ports, *slices[owner].ranges) for ports, owner in zip(used, owners, strict=True)]
    assert together == pytest.approx(alone)


def test_least_use_is_a_bound() -> None:
    assert least_use(1.0) == pytest.approx(1.0)
    for share in (0.1, 0.5, 0.8, 0.95):
        used = least_use(share)
        assert used / (used + (1 - used) ** 2) == pytest.approx(share)
        assert used <= share


def observation(used: Collection[int], *ranges: PortRange, pressure: float = 0.8) -> Observation:
    rows = [flow(((CLIENT, 1024 + number), (SERVER, 443)), (SOFT, port)) for number, port in enumerate(sorted(used))]
    return Observation(SliceIndex((made_of(*ranges),)), flows=flows(*rows), pressure=pressure)


def test_pressure_counts_what_is_findable() -> None:
    ranges = PortRange(1, 400), PortRange(1001, 1400)
    scattered = set(range(1, 401, 2)) | set(range(1001, 1401, 2)) | set(range(2, 221, 2)) | set(range(1002, 1221, 2))
    half_full = set(range(1, 401)) | set(range(1001, 1201))
    for used, kinds in ((scattered, []), (half_full, [Kind.SLICE_PRESSURE])):
        found = find_findings(observation(used, *ranges), [Kind.SLICE_PRESSURE])
        assert len(used) / 800 == pytest.approx(0.76, abs=0.02)
        assert [one.kind for one in found] == kinds
    assert found[0].extra["free"] == 200
    assert found[0].extra["findable"] == int(200 * found[0].extra["find_chance"]) == 99
    assert "misses the free ones for 50% of new flows" in found[0].message


def test_uses_keep_their_chance_in_any_order() -> None:
    seen = observation(all_but(WIDE, range(10500, 10548)), WIDE)
    other = flows(flow(((CLIENT, 5), (SERVER, 80)), (SOFT, 10000)))
    both = Observation(seen.index, flows=np.concatenate((other, seen.flows)))
    count = UseCount(both.counted, both.index)
    chances = {use.towards.dport: round(use.find_chance, 3) for use in count.uses(np.array([1, 0]))}
    assert chances == {443: 0.216, 80: 1.0}
    assert {use.towards.dport: use.findable for use in count.uses(np.array([0, 1]))} == {443: 10, 80: 2047}


def test_a_slice_without_ports_for_rewriting() -> None:
    kept = Slice("kept", ip_address(SOFT), (PortRange(9000, 9009),), AMS.protocols, (PortRange(9000, 9009),))
    seen = Observation(SliceIndex((kept,)), flows=flows(flow(((CLIENT, 1), (SERVER, 443)), (SOFT, 9000))))
    assert seen.uses == []
    assert seen.busiest == []
