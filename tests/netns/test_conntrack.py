"""ctnetlink on a real kernel, with `conntrack` as the oracle that nobody here wrote."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import struct
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from typing import Any

import numpy as np
import pytest
from own_network import connection, run, send_echo, send_udp
from tracked import CLIENT, CLIENT6, SERVER, SERVER6, SOFT, SOFT6, flow, insert_many, tracked_network

from nat_rewriter.errors import NetlinkError, PermissionNeeded
from nat_rewriter.kernel import conntrack, conntrack_dumps, netlink
from nat_rewriter.kernel.conntrack import EventStream, FlowFilter, TupleFilter
from nat_rewriter.model.flows import Flow, Status, flow_from_record
from nat_rewriter.model.tuples import FlowTuple

lib = conntrack.lib


@pytest.fixture
def network() -> Iterator[None]:
    with tracked_network():
        yield


@pytest.fixture
def traffic(network: None) -> Iterator[None]:
    """Flows of every sort, some of them still open."""
    with ExitStack() as held:
        for client, server in ((CLIENT, SERVER), (CLIENT6, SERVER6)):
            for port in (443, 80, 7007, 5005, 5006, 5007):
                held.enter_context(connection(client, server, port, 30000 + port))
            with connection(client, server, 8080, 38080):
                pass
            send_udp(client, 40000, server, 443, answered=True)
            send_udp(client, 40001, server, 5005)
        send_echo(CLIENT, SERVER, 777)
        send_echo(CLIENT6, SERVER6, 777)
        yield


def conntrack_xml() -> list[dict[str, Any]]:
    """Return the entries as `conntrack` shows them, in the words of :func:`shown`."""
    entries = []
    for family in ("ipv4", "ipv6"):
        text = run(f"conntrack -L -f {family} -o xml,id")
        if "<flow>" in text:
            entries += [read_xml(element) for element in ET.fromstring(text[text.index("<conntrack>") :])]
    return entries


def read_xml(element: ET.Element) -> dict[str, Any]:
    metas = {meta.attrib["direction"]: meta for meta in element}
    rest = metas["independent"]
    return {
        "id": int(rest.findtext("id", "0")),
        "state": rest.findtext("state"),
        "mark": int(rest.findtext("mark", "0")),
        "zone": zone_of(metas),
        "assured": rest.find("assured") is not None,
        "seen_reply": rest.find("unreplied") is None,
        "original": read_direction(metas["original"]),
        "reply": read_direction(metas["reply"]),
    }


def zone_of(metas: dict[str, ET.Element]) -> int:
    zones = [meta.findtext("zone") or meta.findtext("layer3/zone") for meta in metas.values()]
    return next((int(zone) for zone in zones if zone), 0)


def read_direction(meta: ET.Element) -> tuple[Any, ...]:
    layer4 = meta.find("layer4")
    assert layer4 is not None
    return (
        layer4.attrib["protoname"],
        ip_address(meta.findtext("layer3/src", "")),
        int(layer4.findtext("sport", "0")),
        ip_address(meta.findtext("layer3/dst", "")),
        int(layer4.findtext("dport", "0")),
        int(meta.findtext("counters/packets", "-1")),
        int(meta.findtext("counters/bytes", "-1")),
    )


def shown(entry: Flow) -> dict[str, Any]:
    assert entry.packets is not None
    assert entry.bytes is not None
    # `conntrack` leaves echo ids out of its XML.
    has_ports = not entry.original.protocol.startswith("icmp")
    directions = [
        (tuple_.protocol, tuple_.src, tuple_.sport * has_ports, tuple_.dst, tuple_.dport * has_ports, packets, octets)
        for tuple_, packets, octets in zip((entry.original, entry.reply), entry.packets, entry.bytes, strict=True)
    ]
    return {
        "id": entry.id,
        "state": entry.state,
        "mark": entry.mark,
        "zone": entry.zone,
        "assured": Status.ASSURED in entry.status,
        "seen_reply": Status.SEEN_REPLY in entry.status,
        "original": directions[0],
        "reply": directions[1],
    }


def by_id(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(entries, key=lambda entry: (entry["id"], str(entry)))


def dumped(wanted: FlowFilter = conntrack.EVERYTHING) -> list[Flow]:
    return [flow_from_record(record) for record in conntrack.dump(wanted)]


def test_the_dump_equals_what_conntrack_shows(traffic: None) -> None:
    entries = dumped()
    assert len(entries) >= 20
    assert by_id([shown(entry) for entry in entries]) == by_id(conntrack_xml())


def test_the_dump_in_small_arrays_is_the_same(traffic: None) -> None:
    parts = list(conntrack.dump_batches(size=3))
    assert max(len(part) for part in parts) == 3
    assert sorted(np.concatenate(parts)["key"].tolist()) == sorted(conntrack.dump()["key"].tolist())


def test_keys_are_unique(traffic: None) -> None:
    keys = conntrack.dump()["key"].tolist()
    assert len(set(keys)) == len(keys)


def test_entries_are_stamped_and_expire(traffic: None) -> None:
    entries = dumped()
    assert entries
    for entry in entries:
        assert entry.start_ns is not None
        assert abs(entry.start_ns / 1e9 - time.time()) < 60
        assert entry.timeout_s is not None


def test_echo_ids_stand_for_both_ports(traffic: None) -> None:
    rewritten = next(entry for entry in dumped() if entry.original.protocol == "icmp")
    assert rewritten.icmp == (8, 0)
    assert rewritten.original.sport == rewritten.original.dport == 777
    assert 9000 <= rewritten.reply.dport <= 9009
    assert rewritten.reply.sport == rewritten.reply.dport
    assert [f"id={rewritten.reply.dport}" in line for line in run("conntrack -L -p icmp").splitlines()] == [True]
    plain = next(entry for entry in dumped() if entry.original.protocol == "icmpv6")
    assert plain.icmp == (128, 0)
    assert {plain.original.sport, plain.original.dport, plain.reply.sport, plain.reply.dport} == {777}


FILTERS = [
    FlowFilter(family=4),
    FlowFilter(family=6),
    FlowFilter(zone=0),
    FlowFilter(zone=5),
    FlowFilter(zone=6),
    FlowFilter(zone=7),
    FlowFilter(mark=0x7007),
    FlowFilter(mark=0),
    FlowFilter(mark=0x7000, mark_mask=0xF000),
    FlowFilter(mark=0x7FFF, mark_mask=0xF000),
    FlowFilter(status=Status.SRC_NAT),
    FlowFilter(status=Status(0), status_mask=Status.SRC_NAT),
    FlowFilter(status=Status.ASSURED, status_mask=Status.ASSURED | Status.SRC_NAT),
    FlowFilter(status=Status(0), status_mask=Status(0)),
    FlowFilter(protocol="udp"),
    FlowFilter(protocol="udp", family=6),
    FlowFilter(protocol="icmp", family=4),
    FlowFilter(protocol="icmpv6", family=6),
    FlowFilter(original=TupleFilter(src=ip_address(CLIENT))),
    FlowFilter(original=TupleFilter(src=ip_address(CLIENT6))),
    FlowFilter(original=TupleFilter(dst=ip_address(SERVER6)), zone=5),
    FlowFilter(original=TupleFilter(dst=ip_address(SERVER), dport=443)),
    FlowFilter(original=TupleFilter(dst=ip_address(SERVER), dport=443), protocol="tcp"),
    FlowFilter(original=TupleFilter(dst=ip_address(SERVER6), dport=443), protocol="tcp"),
    FlowFilter(original=TupleFilter(sport=30080), family=4, protocol="tcp"),
    FlowFilter(original=TupleFilter(sport=30080)),
    FlowFilter(reply=TupleFilter(dst=ip_address(SOFT)), status=Status.SRC_NAT),
    FlowFilter(reply=TupleFilter(dst=ip_address(SOFT6))),
    FlowFilter(reply=TupleFilter(sport=443), family=4, protocol="udp"),
    FlowFilter(original=TupleFilter(src=ip_address("192.0.2.99"))),
]


def wanted_by(wanted: FlowFilter, entry: Flow) -> bool:
    """Say in Python what a filter means."""
    mask = wanted.wanted_status_mask
    parts = [
        wanted.wanted_family in (None, entry.original.src.version),
        wanted.protocol in (None, entry.original.protocol),
        wanted.zone in (None, entry.zone),
        wanted.mark is None or (wanted.mark ^ entry.mark) & wanted.mark_mask == 0,
        wanted.status is None or (wanted.status ^ entry.status) & mask == 0,
    ]
    for tuple_filter, tuple_ in ((wanted.original, entry.original), (wanted.reply, entry.reply)):
        for name in ("src", "sport", "dst", "dport"):
            parts.append(getattr(tuple_filter, name) in (None, getattr(tuple_, name)))
    return all(parts)


def test_a_filtered_dump_is_the_whole_one_filtered(traffic: None) -> None:
    for wanted in FILTERS:
        expected = [entry.id for entry in dumped() if wanted_by(wanted, entry)]
        assert sorted(entry.id for entry in dumped(wanted)) == sorted(expected), wanted


def test_it_is_the_same_where_the_kernel_refuses_the_filter(traffic: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # A status under an empty mask is refused with EINVAL.
    refused = [conntrack.u32_attribute(lib.CTA_STATUS, 1), conntrack.u32_attribute(lib.CTA_STATUS_MASK, 0)]
    request = conntrack.conntrack_message(lib.IPCTNL_MSG_CT_GET, lib.NLM_F_DUMP, None, *refused)
    with pytest.raises(NetlinkError, match="dump: invalid argument"):
        netlink.ask(lib.NETLINK_NETFILTER, request, "dump")
    monkeypatch.setattr(conntrack_dumps, "filter_attributes", lambda _: refused)
    test_a_filtered_dump_is_the_whole_one_filtered(traffic)


def test_filters_meet_entries(traffic: None) -> None:
    """Most filters of the list match some entries and not others, or they would show nothing."""
    entries = dumped()
    counts = [sum(wanted_by(wanted, entry) for entry in entries) for wanted in FILTERS]
    assert sum(0 < count < len(entries) for count in counts) >= len(FILTERS) - 2


def test_an_empty_table_is_an_empty_array(network: None) -> None:
    assert len(conntrack.dump()) == 0
    assert list(conntrack.dump_batches()) == []


@pytest.mark.parametrize(
    "original",
    [
        flow("tcp", CLIENT, 1234, SERVER, 443),
        flow("udp", CLIENT6, 1234, SERVER6, 443),
        flow("icmp", CLIENT, 77, SERVER, 77),
        flow("icmpv6", CLIENT6, 77, SERVER6, 77),
        flow("sctp", CLIENT, 1234, SERVER, 443),
    ],
    ids=str,
)
@pytest.mark.parametrize("zone", [0, 9])
def test_an_entry_is_inserted_found_and_deleted(network: None, original: FlowTuple, zone: int) -> None:
    assert conntrack.get_flow(original, zone) is None
    conntrack.insert_flow(original, 300, zone=zone, mark=77)
    entry = conntrack.get_flow(original, zone)
    assert entry is not None
    assert (entry.original, entry.reply, entry.zone, entry.mark) == (original, original.reversed(), zone, 77)
    assert not entry.status & Status.SRC_NAT
    assert entry.timeout_s is not None
    assert 290 <= entry.timeout_s <= 300
    assert conntrack.get_flow(original, zone + 1) is None
    assert not conntrack.delete_flow(original, zone, entry.id ^ 1)
    assert conntrack.delete_flow(original, zone, entry.id)
    assert not conntrack.delete_flow(original, zone)


def test_an_entry_is_inserted_with_a_translation(network: None) -> None:
    original = flow("udp", CLIENT, 1234, SERVER, 53)
    conntrack.insert_flow(original, 300, source_nat=(ip_address(SOFT), 9005))
    entry = conntrack.get_flow(original)
    assert entry is not None
    assert Status.SRC_NAT in entry.status
    assert (entry.reply.dst, entry.reply.dport) == (ip_address(SOFT), 9005)


def test_a_held_tuple_is_not_inserted_again(network: None) -> None:
    original = flow("tcp", CLIENT, 1234, SERVER, 443)
    conntrack.insert_flow(original, 300)
    with pytest.raises(NetlinkError, match="insert conntrack entry: file exists") as caught:
        conntrack.insert_flow(original, 300)
    assert caught.value.errno == errno.EEXIST


def test_the_size_of_the_table_is_that_of_this_namespace(network: None) -> None:
    insert_many(7)
    size = conntrack.get_table_size()
    assert size.entries == 7
    assert size.max_entries > 7


def test_statistics_are_those_that_conntrack_prints(network: None) -> None:
    send_udp(CLIENT, 40000, SERVER, 53)
    rows = conntrack.list_cpu_statistics()
    printed = [dict(pair.split("=") for pair in line.split()) for line in run("conntrack -S").splitlines()]
    assert [row["cpu"] for row in rows] == [int(row["cpu"]) for row in printed]
    for ours, theirs in zip(rows, printed, strict=True):
        common = set(ours) & set(theirs)
        assert {"insert_failed", "drop", "early_drop", "search_restart"} <= common
        assert {name: ours[name] for name in common} == {name: int(theirs[name]) for name in common}


def test_without_the_capability_its_name_is_told(network: None) -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_refusals) == ["CAP_NET_ADMIN"] * 3


def _refusals() -> list[str]:
    # capset(2), version 3: no capability is left. Another user id would not do, as it may not be mapped here.
    assert ctypes.CDLL(None).capset(struct.pack("=Ii", 0x20080522, 0), bytes(24)) == 0
    refused = []
    for attempt in (conntrack.dump, EventStream, lambda: conntrack.delete_flow(flow("tcp", CLIENT, 1, SERVER, 2))):
        try:
            attempt()
        except PermissionNeeded as error:
            refused.append(error.capability)
    return refused
