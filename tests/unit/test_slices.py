"""Port ranges and port sets: arithmetic that must not be off by one."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_rewriter.model.slices import PortRange, PortSet, merge_ranges, subtract_ranges

port_ranges = st.tuples(st.integers(0, 300), st.integers(0, 300)).map(lambda ends: PortRange(min(ends), max(ends)))


def ports_of(ranges: object) -> list[int]:
    assert isinstance(ranges, tuple | list)
    return [port for ports in ranges for port in range(ports.first, ports.last + 1)]


def test_the_example_of_rfc_7597_appendix_a() -> None:
    """Example 1: offset 6, PSID length 8, PSID 0x34 (52): 1232-1235, 2256-2259, ..., 63696-63699, 64720-64723."""
    ranges = PortSet(6, 8, 0x34).ranges()
    assert ranges[:2] == (PortRange(1232, 1235), PortRange(2256, 2259))
    assert ranges[-2:] == (PortRange(63696, 63699), PortRange(64720, 64723))
    assert len(ranges) == 63


def test_a_port_set_whose_bits_are_all_used_has_single_ports() -> None:
    ranges = PortSet(6, 10, 0).ranges()
    assert ranges[:2] == (PortRange(1024, 1024), PortRange(2048, 2048))
    assert len(ranges) == 63


@pytest.mark.parametrize(
    ("port_set", "first", "last", "count"),
    [
        (PortSet(0, 0, 0), PortRange(0, 65535), PortRange(0, 65535), 1),
        (PortSet(0, 8, 1), PortRange(256, 511), PortRange(256, 511), 1),
        (PortSet(0, 16, 65535), PortRange(65535, 65535), PortRange(65535, 65535), 1),
        (PortSet(4, 8, 0), PortRange(4096, 4111), PortRange(61440, 61455), 15),
        (PortSet(4, 8, 255), PortRange(8176, 8191), PortRange(65520, 65535), 15),
        (PortSet(15, 1, 1), PortRange(3, 3), PortRange(65535, 65535), 32767),
    ],
)
def test_port_sets_at_the_edges(port_set: PortSet, first: PortRange, last: PortRange, count: int) -> None:
    ranges = port_set.ranges()
    assert (ranges[0], ranges[-1], len(ranges)) == (first, last, count)


@pytest.mark.parametrize("offset", range(16))
def test_the_port_sets_of_one_offset_and_length_share_all_ports_among_them(offset: int) -> None:
    for length in {0, min(1, 16 - offset), min(5, 16 - offset), min(16 - offset, 10)}:
        owner = bytearray(65536)
        for psid in range(1 << length):
            for ports in PortSet(offset, length, psid).ranges():
                assert not any(owner[ports.first : ports.last + 1])
                owner[ports.first : ports.last + 1] = b"\x01" * len(ports)
        lowest = 1 << (16 - offset) if offset else 0
        assert not any(owner[:lowest])
        assert all(owner[lowest:])


@given(st.integers(0, 15).flatmap(lambda a: st.tuples(st.just(a), st.integers(0, 16 - a))), st.randoms())
def test_a_port_belongs_to_the_set_whose_id_its_middle_bits_are(shape: tuple[int, int], chance: random.Random) -> None:
    offset, length = shape
    psid = chance.randrange(1 << length)
    ranges = PortSet(offset, length, psid).ranges()
    for ports in chance.sample(ranges, min(20, len(ranges))):
        for port in (ports.first, ports.last):
            assert (port >> (16 - offset - length)) & ((1 << length) - 1) == psid


@given(st.lists(port_ranges))
def test_merged_ranges_have_the_same_ports_and_do_not_touch(ranges: list[PortRange]) -> None:
    merged = merge_ranges(ranges)
    assert ports_of(merged) == sorted(set(ports_of(ranges)))
    assert all(before.last + 1 < after.first for before, after in pairwise(merged))


@given(st.lists(port_ranges), st.lists(port_ranges))
def test_what_is_left_is_what_was_not_taken(ranges: list[PortRange], taken: list[PortRange]) -> None:
    left = subtract_ranges(merge_ranges(ranges), taken)
    assert ports_of(left) == sorted(set(ports_of(ranges)) - set(ports_of(taken)))


@given(port_ranges, port_ranges)
def test_overlap_is_mutual_and_means_a_shared_port(one: PortRange, other: PortRange) -> None:
    shared = set(ports_of([one])) & set(ports_of([other]))
    assert one.overlaps(other) == other.overlaps(one) == bool(shared)
