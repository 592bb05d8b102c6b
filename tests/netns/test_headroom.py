"""Findable headroom against the kernel: how many new flows find one of the free ports of a large slice."""

from __future__ import annotations

import random
import select
from collections.abc import Callable, Collection, Iterator
from ipaddress import ip_address

import pytest

from nat_rewriter.kernel.conntrack import delete_flow, insert_flow
from nat_rewriter.model.tuples import FlowTuple
from netns_lab import Lab

SERVER, SOFT, CLIENT = "203.0.113.1", "198.51.100.10", "10.0.0.2"
FIRST, SIZE = 10000, 2048
ROUNDS, A_ROUND = 30, 8

SIDE_BY_SIDE = range(11000, 11048)
SCATTERED = random.Random(1).sample(range(FIRST, FIRST + SIZE), 48)


@pytest.fixture
def wide(lab_factory: Callable[..., Lab]) -> Lab:
    lab = lab_factory(slices=[f"{SOFT}:{FIRST}-{FIRST + SIZE - 1}"])
    lab.server.udp_server(53)
    return lab


def fill(lab: Lab, free: Collection[int]) -> None:
    """Take all ports of the slice towards the server but some."""
    with lab.egress.enter():
        for port in set(range(FIRST, FIRST + SIZE)) - set(free):
            insert_flow(FlowTuple("udp", ip_address(SOFT), port, ip_address(SERVER), 53), 600)


def found_share(lab: Lab) -> float:
    """The share of new flows that found a port; each gives it back, so that all have the same chance."""
    ports = iter(range(30000, 60000))
    return sum(len(list(answered(lab, [next(ports) for _ in range(A_ROUND)]))) for _ in range(ROUNDS)) / (
        ROUNDS * A_ROUND
    )


def answered(lab: Lab, ports: list[int]) -> Iterator[int]:
    """Send a datagram from each of the client's ports; yield and end the flows that were answered."""
    socks = [lab.client.udp_connect((SERVER, 53), src=(CLIENT, port)) for port in ports]
    for sock in socks:
        sock.send(b"natctl")
    waiting = set(socks)
    while waiting and (ready := select.select(list(waiting), [], [], 0.3)[0]):
        waiting.difference_update(ready)
    for sock, port in zip(socks, ports, strict=True):
        if sock not in waiting:
            with lab.egress.enter():
                assert delete_flow(FlowTuple("udp", ip_address(CLIENT), port, ip_address(SERVER), 53))
            yield port
        sock.close()


@pytest.mark.parametrize(
    ("free", "expected"),
    [pytest.param(SIDE_BY_SIDE, 0.216, id="contiguous"), pytest.param(SCATTERED, 0.99, id="scattered")],
)
def test_free_is_not_findable(wide: Lab, free: Collection[int], expected: float) -> None:
    config = wide.config(coexist="confine")
    wide.natctl("apply", "--config", config, expect=0)
    fill(wide, free)
    (finding,) = wide.natctl("check", "--json", "--only", "slice-pressure", "--config", config, expect=3).lines()
    assert (finding["used"], finding["capacity"], finding["free"]) == (2000, SIZE, 48)
    assert finding["find_chance"] == pytest.approx(expected, abs=0.02)
    assert finding["findable"] == int(48 * finding["find_chance"])
    seen = found_share(wide)
    print(f"{seen:.3f} of {ROUNDS * A_ROUND} new flows found a port, {finding['find_chance']} were expected")
    # Four standard deviations of that many tries, and a little for the ports that a round takes from itself.
    assert seen == pytest.approx(finding["find_chance"], abs=0.12)
    (busiest,) = wide.natctl("status", "--json", "--config", config).json()["busiest"]
    assert (busiest["headroom"], busiest["findable"]) == (48, finding["findable"])
