"""How slices are used, counted over tables made by hand; and what the guard recorded."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import pytest
from tables import AMS, AMS6, CLIENT, SERVER, SOFT, SOFT6, flow, flows

from nat_rewriter.detect import Observation, SliceIndex
from nat_rewriter.model.flows import FLOW_FIELDS
from nat_rewriter.model.overview import FlowCount, Overview
from nat_rewriter.model.policy import Controller
from nat_rewriter.model.slices import PortRange, Slice
from nat_rewriter.model.tuples import FlowTuple
from nat_rewriter.report.overview import age_text, overview_lines, overview_object, ports_text
from nat_rewriter.usage import STRAY_TIMEOUT_S, count_slices, list_busiest, list_strays

WEB = (SERVER, 443)


def observation(*rows: dict[str, object]) -> Observation:
    return Observation(SliceIndex((AMS, AMS6)), flows=flows(*rows))


def forwarded(port: int, to: tuple[str, int] = WEB, **fields: object) -> dict[str, object]:
    return flow(((CLIENT, 20000 + port), to), (SOFT, port), **fields)


def test_no_flows() -> None:
    seen = Observation(SliceIndex((AMS, AMS6)))
    uses, outside = count_slices(seen)
    assert [use.total for use in uses] == [0, 0]
    assert (outside, list_busiest(seen, 10)) == (0, [])


def test_flows_are_counted_by_slice_protocol_and_origin() -> None:
    seen = observation(
        forwarded(9000),
        forwarded(9001),
        forwarded(9002, protocol="udp"),
        forwarded(9003, protocol="icmp"),
        flow(((SOFT, 9004), WEB)),
        flow(((SOFT6, 9000), ("2001:db8::1", 53)), protocol="udp"),
        flow(((SOFT, 8999), WEB)),  # outside of the slice
        flow(((CLIENT, 1), WEB)),  # not from a slice's address
        flow(((SERVER, 5), (SOFT, 9009))),  # inbound
    )
    (first, second), outside = count_slices(seen)
    assert first.flows == {"tcp": FlowCount(2, 1), "udp": FlowCount(1, 0), "icmp": FlowCount(1, 0)}
    assert second.flows == {"tcp": FlowCount(), "udp": FlowCount(0, 1)}
    assert (first.total, first.size, second.total, outside) == (5, 10, 1, 1)


def test_the_fullest_destinations_come_first() -> None:
    dns = ("203.0.113.2", 53)
    rows = [forwarded(9000 + n) for n in range(3)] + [forwarded(9000 + n, dns, protocol="udp") for n in range(7)]
    rows.append(forwarded(9000, ("203.0.113.3", 80)))
    found = list_busiest(observation(*rows), 2)
    assert [(use.destination, use.protocol, use.used, use.headroom) for use in found] == [
        ("203.0.113.2:53", "udp", 7, 3),
        ("203.0.113.1:443", "tcp", 3, 7),
    ]
    assert len(list_busiest(observation(*rows), 10)) == 3
    assert list_busiest(observation(*rows), 0) == []


def test_counting_many_flows_takes_no_loop() -> None:
    many = np.zeros(300_000, dtype=FLOW_FIELDS)
    many[:] = flows(forwarded(9000))[0]
    many["reply_dport"] = 9000 + np.arange(len(many)) % 10
    many["reply_src"][:, 1] += (np.arange(len(many)) // 10).astype(np.uint64)
    seen = Observation(SliceIndex((AMS,)), flows=many)
    ((use,), outside) = count_slices(seen)
    assert (use.flows["tcp"].forwarded, outside) == (300_000, 0)
    assert [use.headroom for use in list_busiest(seen, 3)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("element", "packets", "size", "age"),
    [
        ("counter packets 3 bytes 180 expires 86000s", 3, 180, 400),
        ("counter packets 3 bytes 180 timeout 600s expires 500s", 3, 180, 100),
        ("timeout 600s expires 500s", 0, 0, 100),
        ("expires 86400s", 0, 0, 0),
        ("", 0, 0, None),
    ],
)
def test_an_element_of_the_guard_is_read(element: str, packets: int, size: int, age: int | None) -> None:
    (stray,) = list_strays([f"tcp . {SOFT} . 8999 . {SERVER} . 443 {element}".rstrip()])
    assert stray.tuple == FlowTuple("tcp", ip_address(SOFT), 8999, ip_address(SERVER), 443)
    assert (stray.packets, stray.bytes, stray.last_seen_s) == (packets, size, age)


def test_the_latest_stray_comes_first() -> None:
    elements = [f"udp . {SOFT6} . {port} . 2001:db8::1 . 53 expires {port}s" for port in (5, 50, 500)]
    assert [stray.tuple.sport for stray in list_strays(elements)] == [500, 50, 5]


def test_the_timeout_of_strays_is_that_of_the_rules() -> None:
    template = (Path(__file__).parents[2] / "nft_templates" / "sets.nft.j2").read_text()
    (days,) = re.findall(r"set strays.*?timeout (\d+)d", template, re.DOTALL)
    assert int(days) * 86400 == STRAY_TIMEOUT_S


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "unknown"), (0, "0s"), (119, "119s"), (120, "2min"), (7200, "2h")]
)
def test_ages(seconds: int | None, text: str) -> None:
    assert age_text(seconds) == text


def overview(*rows: dict[str, object], strays: tuple[str, ...] = (), differences: tuple[str, ...] = ()) -> Overview:
    uses, outside = count_slices(observation(*rows))
    busiest = tuple(list_busiest(observation(*rows), 10))
    found = tuple(list_strays(strays))
    return Overview(
        Controller(), tuple(uses), busiest, outside, found, differences, 7, 100, {"net.ipv4.ip_forward": "1"}
    )


def test_lines_begin_with_what_they_are_about() -> None:
    shown = overview(
        forwarded(9000),
        flow(((SOFT, 1), WEB)),
        strays=(f"tcp . {SOFT} . 1 . {SERVER} . 443 counter packets 1 bytes 60 expires 86390s",),
        differences=("-soft4: 192.0.2.1",),
    )
    assert list(overview_lines(shown)) == [
        "table inet natctl coexist=confine guard=drop",
        "slice ams-1 198.51.100.10 9000-9009 size=10 tcp=1+0 udp=0+0 icmp=0+0",
        "slice ams-6 2001:db8:5::10 9000-9009 size=10 tcp=0+0 udp=0+0",
        "outside flows=1",
        "busiest ams-1 tcp 203.0.113.1:443 used=1 headroom=9 findable=9",
        "stray tcp 198.51.100.10:1 203.0.113.1:443 packets=1 last-seen=10s",
        "drift -soft4: 192.0.2.1",
        "conntrack entries=7 max=100",
        "sysctl net.ipv4.ip_forward = 1",
    ]


def test_the_object_has_stable_names() -> None:
    found = overview_object(overview(forwarded(9000)), datetime(2026, 11, 21, 19, 24, 22, 123456, UTC))
    names = "time table coexist guard slices flows_outside busiest strays drift conntrack sysctls"
    assert list(found) == names.split()
    assert found["time"] == "2026-11-21T19:24:22.123456Z"
    assert found["slices"][0]["flows"]["tcp"] == {"forwarded": 1, "local": 0}


def test_many_ranges_are_cut_short() -> None:
    ranges = tuple(PortRange(port, port) for port in range(1, 8))
    uses, _ = count_slices(Observation(SliceIndex((Slice("s", ip_address(SOFT), ranges, AMS.protocols),))))
    assert ports_text(uses[0]) == "1,2,3,4,+3"
