"""Slices as aligned blocks: the blocks of a slice hold its ports, and no others."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_rewriter.model.slices import PortRange, Protocol, Slice
from nat_rewriter.render.blocks import SIZES, Blocks, block_elements, blocks_of, confining_elements

BOTH = (Protocol.TCP, Protocol.UDP)
ADDRESS = "198.51.100.10"


def covered(*ranges: PortRange, protocols: tuple[Protocol, ...] = BOTH) -> list[int]:
    """Return the ports in blocks, each as often as it is in one."""
    owned = Slice("s", ip_address(ADDRESS), ranges, protocols)
    found = block_elements([owned], 4)
    assert list(found) == [blocks.owned for blocks in blocks_of(4)]
    ports = []
    for size, keys in zip(SIZES, found.values(), strict=True):
        for key in keys:
            first, _, address = key.partition(" . ")
            assert (address, int(first) % size) == (ADDRESS, 0)
            ports += range(int(first), int(first) + size)
    return sorted(ports)


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_blocks_hold_each_port_of_the_range_once(one: int, other: int) -> None:
    ports = PortRange(min(one, other), max(one, other))
    assert covered(ports) == list(range(ports.first, ports.last + 1))


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_a_range_has_at_most_seven_small_blocks_of_a_size_at_either_end(one: int, other: int) -> None:
    owned = Slice("s", ip_address(ADDRESS), (PortRange(min(one, other), max(one, other)),), BOTH)
    assert all(len(keys) <= 14 for keys in list(block_elements([owned], 4).values())[1:])


def test_what_is_for_one_protocol_alone_is_in_no_block() -> None:
    assert covered(PortRange(10_240, 12_287), protocols=(Protocol.TCP, Protocol.ICMP)) == []


@pytest.mark.parametrize("family", [4, 6])
def test_a_flow_is_kept_to_its_whole_range_by_each_block(family: int) -> None:
    address = ip_address(ADDRESS if family == 4 else "2001:db8::1")
    owned = Slice("s", address, (PortRange(1000, 1599), PortRange(3000, 3000)), BOTH)
    kept = {key: place for keys in confining_elements([owned], family).values() for key, place in keys.items()}
    assert kept.keys() == {key for keys in block_elements([owned], family).values() for key in keys}
    ends = {int(key.partition(" . ")[0]): place for key, place in kept.items()}
    whole = f"{ADDRESS} . 1000-1599" if family == 4 else "goto keep6_1000_1599"
    assert {place for first, place in ends.items() if first < 3000} == {whole}
    assert ends[3000] == (f"{ADDRESS} . 3000-3000" if family == 4 else "goto keep6_3000_3000")


@pytest.mark.parametrize("blocks", blocks_of(6), ids=lambda blocks: blocks.owned)
def test_a_mask_gives_the_first_port_of_a_block(blocks: Blocks) -> None:
    _, masked, mask = blocks.first_port.partition(" & ")
    assert 10_245 & (int(mask, 16) if masked else 0xFFFF) == 10_245 // blocks.size * blocks.size
