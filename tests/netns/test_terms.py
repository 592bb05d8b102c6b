"""The fence of pools in the kernel: what is let through ends in time, also when the agent stands still over it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from nat_rewriter.errors import NftError
from nat_rewriter.kernel.terms import Fence
from nat_rewriter.model.pools import Block, Pool
from nat_rewriter.model.slices import PortRange
from netns_lab import Lab

POOL = Pool("fleet", (ip_address("198.51.100.10"),), PortRange(8192, 9215), 256, ttl_s=5)
FIRST, SECOND = (Block(POOL.addresses[0], first, 256) for first in (8192, 8448))


@pytest.fixture
def fence(lab: Lab) -> Iterator[Fence]:
    with lab.egress.enter(), Fence("natctl", [POOL]) as made:
        yield made


def held(lab: Lab) -> set[int]:
    """Return the first ports of what passes now."""
    listed = lab.egress.run(["nft", "list", "table", "inet", "natctl_terms"]).stdout
    return {first for first in (8192, 8448) if f"{first}-" in listed.split("chain")[0]}


def after(seconds: float, *blocks: Block) -> Iterator[tuple[Block, float]]:
    """Stand still between the ticket and the renewal."""
    counted = [(block, 4.0) for block in blocks]
    time.sleep(seconds)
    yield from counted


def test_what_is_held_passes_until_it_ends(lab: Lab, fence: Fence) -> None:
    fence.raise_up([(FIRST, 4.0)])
    assert held(lab) == {8192}
    fence.renew([(FIRST, 4.0), (SECOND, 4.0)])
    assert held(lab) == {8192, 8448}
    fence.hold_only([(SECOND, 0.3)])
    time.sleep(0.5)
    assert held(lab) == set()


def test_who_stands_still_lets_nothing_through(lab: Lab, fence: Fence) -> None:
    with pytest.raises(NftError):
        fence.raise_up(after(0.7, FIRST))
    assert held(lab) == set()
    fence.raise_up([(FIRST, 60.0)])
    with pytest.raises(NftError):
        fence.renew(after(0.7, SECOND))
    with pytest.raises(NftError):
        fence.hold_only(after(0.7, SECOND))
    assert held(lab) == {8192}
    fence.renew([(SECOND, 4.0)])
    assert 8448 in held(lab)


def test_a_table_of_another_make_is_replaced(lab: Lab, fence: Fence) -> None:
    lab.egress.nft("table inet natctl_terms { chain c { type filter hook postrouting priority 0; drop;\n}\n}")
    fence.raise_up([(FIRST, 4.0)])
    assert held(lab) == {8192}
    assert "chain c " not in lab.egress.run(["nft", "list", "ruleset"]).stdout
