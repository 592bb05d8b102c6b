"""Slices as aligned blocks: no block holds a port that is not in the slice, and large slices are all blocks."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_rewriter.model.slices import PortRange, Protocol, Slice
from nat_rewriter.render.blocks import SIZES, Blocks, block_elements, blocks_of

BOTH = (Protocol.TCP, Protocol.UDP)
ADDRESS = "198.51.100.10"


def covered(*ranges: PortRange, protocols: tuple[Protocol, ...] = BOTH) -> list[int]:
    """Return the ports in blocks, each as often as it is in one."""
    owned = Slice("s", ip_address(ADDRESS), ranges, protocols)
    found = block_elements([owned], 4)
    assert list(found) == [blocks.name for blocks in blocks_of(4)]
    ports = []
    for size, keys in zip(SIZES, found.values(), strict=True):
        for key in keys:
            address, _, first = key.partition(" . ")
            assert (address, int(first) % size) == (ADDRESS, 0)
            ports += range(int(first), int(first) + size)
    return sorted(ports)


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_blocks_hold_what_is_in_the_range_but_less_than_eight_ports_at_either_end(one: int, other: int) -> None:
    ports = PortRange(min(one, other), max(one, other))
    found = covered(ports)
    if len(ports) < 15:
        assert set(found) <= set(range(ports.first, ports.last + 1))
    else:
        assert found == list(range(found[0], found[-1] + 1))
        assert 0 <= found[0] - ports.first < 8
        assert 0 <= ports.last - found[-1] < 8


@pytest.mark.parametrize("size", [512, 1024, 2048, 64, 128])
def test_an_aligned_slice_is_all_blocks(size: int) -> None:
    assert covered(PortRange(10_240, 10_240 + size - 1)) == list(range(10_240, 10_240 + size))


def test_what_is_for_one_protocol_alone_is_in_no_block() -> None:
    assert covered(PortRange(10_240, 12_287), protocols=(Protocol.TCP, Protocol.ICMP)) == []


@pytest.mark.parametrize("blocks", blocks_of(6), ids=lambda blocks: blocks.name)
def test_a_mask_gives_the_first_port_of_a_block(blocks: Blocks) -> None:
    assert 10_245 & int(blocks.mask, 16) == 10_245 // blocks.size * blocks.size
