"""The sieve of the C core against the same questions asked of a whole table with numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import AMS, AMS6, SOFT, SOFT6, flow, flows

from nat_rewriter.detect import Observation, SliceIndex
from nat_rewriter.detect.ownership import NOBODY
from nat_rewriter.kernel.sieve import Sieve
from nat_rewriter.model.flows import Status
from nat_rewriter.model.slices import PortRange, Protocol, Slice

# One slice keeps ports for sockets, one has many small ranges, as port sets have.
SPLIT = Slice(
    "split", AMS.address, (PortRange(9020, 9029),), (Protocol.TCP,), socket_ranges=(PortRange(9025, 9029),)
)  # fmt: skip
SET = Slice(
    "set", AMS.address, tuple(PortRange(first, first + 3) for first in range(20000, 30000, 64)), (Protocol.UDP,)
)
SLICES = (AMS, AMS6, SPLIT, SET)
V4, V6 = (SOFT, "10.0.0.2", "203.0.113.1", "203.0.113.2"), (SOFT6, "2001:db8:1::2", "2001:db8:2::1")
PORTS = st.sampled_from([443, 8999, 9000, 9005, 9009, 9010, 9020, 9025, 9030, 20000, 20003, 20004, 20064])


@st.composite
def rows(draw: Any) -> dict[str, Any]:
    protocol = draw(st.sampled_from(["tcp", "udp", "icmp"]))
    addresses = V4 if protocol == "icmp" or draw(st.booleans()) else V6
    ends = [(draw(st.sampled_from(addresses)), draw(PORTS)) for _ in range(3)]
    status = draw(st.sampled_from([Status.CONFIRMED, Status.SRC_NAT, Status.DST_NAT, Status.SRC_NAT | Status.DST_NAT]))
    zone = draw(st.sampled_from([0, 0, 5]))
    return flow((ends[0], ends[1]), ends[2], protocol=protocol, status=int(status), zone=zone)


TABLES = st.lists(rows(), max_size=60).map(lambda some: flows(*some))
Table = np.ndarray[Any, Any]


def uses_of(counted: Any) -> list[tuple[Any, ...]]:
    """What was counted, in words that do not depend on who counted: with the ports."""
    uses = counted.uses()
    places, ports = counted.ports(uses)
    assert np.all(np.diff(places * 65536 + ports) > 0)
    used = [tuple(ports[places == place].tolist()) for place in range(len(uses))]
    names = ("slice", "used", "flows", "port", "zone", "family", "protocol")
    return sorted(
        (*(int(use[name]) for name in names), *use["server"].tolist(), mine)
        for use, mine in zip(uses, used, strict=True)
    )


def zones_of(table: Table) -> set[int]:
    whole = Observation(SliceIndex(SLICES), table)
    return set(table["zone"][whole.wire_rows].tolist())


@given(TABLES)
def test_it_counts_as_detection_does(table: Table) -> None:
    sieve, whole = Sieve(SLICES), Observation(SliceIndex(SLICES), table)
    sieve.add(table)
    assert sieve.flows == len(table)
    assert sieve.slice_flows == whole.slice_flows
    assert uses_of(sieve) == uses_of(whole.counted)
    assert set(sieve.zones()) == zones_of(table)


@given(TABLES)
def test_it_keeps_what_detection_has_to_see(table: Table) -> None:
    index = SliceIndex(SLICES)
    seen = Sieve(SLICES).add(table)
    local = index.find_addresses(table["orig_src"], table["family"]) != NOBODY
    wire = index.find_addresses(table["reply_dst"], table["family"])
    astray = (wire != NOBODY) & (index.owners(wire, table["protocol"], table["reply_dport"]) == NOBODY)
    target = index.find_addresses(table["orig_dst"], table["family"]) != NOBODY
    rewritten, forwarded = (table["status"] & Status.SRC_NAT) != 0, (table["status"] & Status.DST_NAT) != 0
    assert seen.tolist() == (local | (astray & rewritten) | (target & ~forwarded)).tolist()


@given(TABLES, TABLES)
def test_what_is_counted_out_was_never_there(stays: Table, goes: Table) -> None:
    both, one = Sieve(SLICES), Sieve(SLICES)
    both.add(goes)
    both.add(stays)
    both.remove(goes)
    one.add(stays)
    assert (both.flows, both.slice_flows) == (one.flows, one.slice_flows)
    assert uses_of(both) == uses_of(one)


@given(TABLES)
def test_it_forgets(table: Table) -> None:
    sieve = Sieve(SLICES)
    sieve.add(table)
    sieve.reset()
    assert (sieve.flows, sum(sieve.slice_flows), len(sieve.uses()), sieve.zones()) == (0, 0, 0, [])


@pytest.mark.parametrize("count", [1, 33, 100, 5000])
def test_many_ports_and_destinations_come_and_go(count: int) -> None:
    """Tables grow, and what is given up is used again."""
    wide = Slice("wide", AMS.address, (PortRange(1024, 65535),), (Protocol.TCP,))
    sieve = Sieve([wide])
    table = np.repeat(flows(flow((("10.0.0.2", 5000), ("203.0.113.1", 443)), (SOFT, 9000))), count)
    table["reply_dport"] = 1024 + np.arange(count)
    table["reply_src"][:, 1] += np.arange(count, dtype=np.uint64) % 7
    for _ in range(3):
        sieve.add(table)
        assert sum(sieve.uses()["used"].tolist()) == count
        assert len(sieve.uses()) == min(count, 7)
        sieve.remove(table)
        assert len(sieve.uses()) == 0


def test_without_slices_nothing_is_kept() -> None:
    sieve = Sieve(())
    assert not sieve.add(flows(flow((("10.0.0.2", 5000), ("203.0.113.1", 443)), (SOFT, 9000)))).any()
    assert sieve.slice_flows == []
