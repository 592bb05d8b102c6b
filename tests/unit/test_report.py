"""Findings and flows as they are printed: names, order and absence of fields."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import ip_address

import numpy as np
import pytest
from tables import AMS, CLIENT, NATED, SERVER, SOFT, flow, flows

from nat_rewriter.detect.ownership import SliceIndex
from nat_rewriter.detect.placement import place_flows
from nat_rewriter.model.findings import Finding, FlowParty, Kind, SocketParty
from nat_rewriter.model.flows import Flow, Origin, Present, Status, flow_from_record
from nat_rewriter.model.tuples import FlowTuple
from nat_rewriter.report import (
    FINDING_COLUMNS,
    FLOW_COLUMNS,
    finding_line,
    finding_object,
    finding_row,
    flow_line,
    flow_object,
    flow_row,
    json_line,
)

MOMENT = datetime(2026, 11, 21, 19, 24, 22, 123456, UTC)
LEAK = Finding(
    Kind.PORT_LEAKED,
    "One sentence.",
    "Another one.",
    slice="ams-1",
    protocol="tcp",
    tuple=FlowTuple("tcp", ip_address(SOFT), 9000, ip_address(SERVER), 443),
    wire_sport=63346,
    victim=SocketParty(81233, 4242, "curl"),
    holder=FlowParty("nat-flow", CLIENT, 39064, 1203944),
)


def test_finding_as_the_contract_prints_it() -> None:
    expected = """{"time": "2026-11-21T19:24:22.123456Z", "kind": "port-leaked", "severity": "critical",
        "slice": "ams-1", "protocol": "tcp",
        "tuple": {"src": "198.51.100.10", "sport": 9000, "dst": "203.0.113.1", "dport": 443},
        "wire_sport": 63346,
        "victim": {"type": "socket", "pid": 4242, "command": "curl", "inode": 81233},
        "holder": {"type": "nat-flow", "src": "10.0.0.2", "sport": 39064, "id": 1203944},
        "message": "One sentence.", "remedy": "Another one.", "state": "open"}"""
    assert json_line(finding_object(LEAK, MOMENT)) == " ".join(expected.split())


def test_time_is_printed_in_utc() -> None:
    elsewhere = MOMENT.astimezone(timezone(timedelta(hours=5)))
    assert finding_object(LEAK, elsewhere)["time"] == "2026-11-21T19:24:22.123456Z"
    assert finding_object(LEAK, MOMENT.replace(microsecond=0))["time"].endswith("22.000000Z")


def test_absent_fields_are_left_out() -> None:
    bare = Finding(Kind.RULESET_DRIFT, "It differs.", "Mend it.", extra={"differences": ["one"]})
    assert list(finding_object(bare, MOMENT, "closed")) == [
        "time", "kind", "severity", "differences", "message", "remedy", "state",
    ]  # fmt: skip
    unknown = dataclasses.replace(LEAK, victim=SocketParty(inode=7))
    assert finding_object(unknown, MOMENT)["victim"] == {"type": "socket", "inode": 7}


def test_finding_as_a_line() -> None:
    assert finding_line(LEAK) == (
        "critical port-leaked ams-1 tcp 198.51.100.10:9000 -> 203.0.113.1:443 wire 63346 victim curl[4242] "
        "holder 10.0.0.2:39064: Another one."
    )
    bare = Finding(Kind.RULESET_DRIFT, "It differs.", "Mend it.")
    assert finding_line(bare, "closed") == "closed critical ruleset-drift: It differs. Mend it."


def test_finding_as_a_row() -> None:
    assert len(finding_row(LEAK)) == len(FINDING_COLUMNS)
    full = Finding(Kind.SLICE_EXHAUSTED, "", "", slice="a", protocol="tcp", extra={"destination": "203.0.113.1:443"})
    assert finding_row(full)[3] == "tcp to 203.0.113.1:443"


def test_flow_as_the_contract_prints_it() -> None:
    one = Flow(
        FlowTuple("tcp", ip_address(CLIENT), 39064, ip_address(SERVER), 443),
        FlowTuple("tcp", ip_address(SERVER), 443, ip_address(SOFT), 9000),
        Status.SEEN_REPLY | Status.ASSURED | Status.CONFIRMED | Status.SRC_NAT
        | Status.SRC_NAT_DONE | Status.DST_NAT_DONE,
        1203944, state="ESTABLISHED", timeout_s=431997, packets=(12, 9), bytes=(1840, 9321),
    )  # fmt: skip
    expected = """{"id": 1203944, "protocol": "tcp", "state": "ESTABLISHED",
        "original": {"src": "10.0.0.2", "sport": 39064, "dst": "203.0.113.1", "dport": 443},
        "reply": {"src": "203.0.113.1", "sport": 443, "dst": "198.51.100.10", "dport": 9000},
        "status": ["seen-reply", "assured", "confirmed", "src-nat", "src-nat-done", "dst-nat-done"],
        "mark": 0, "zone": 0, "timeout_s": 431997, "packets": [12, 9], "bytes": [1840, 9321],
        "slice": "ams-1", "origin": "forwarded"}"""
    assert json_line(flow_object(one, "ams-1", Origin.FORWARDED)) == " ".join(expected.split())
    assert len(flow_row(one)) == len(FLOW_COLUMNS)
    assert flow_line(one, "ams-1", Origin.FORWARDED) == (
        "tcp ESTABLISHED ams-1 forwarded 10.0.0.2:39064 -> 203.0.113.1:443 wire 198.51.100.10:9000 timeout 431997 s"
    )


def test_echo_id_takes_the_place_of_ports() -> None:
    one = flow_from_record(flows(flow(((CLIENT, 77), (SERVER, 0)), (SOFT, 9000), protocol="icmp", present=0))[0])
    printed = flow_object(one)
    assert printed["original"] == {"src": CLIENT, "dst": SERVER, "icmp_id": 77}
    assert printed["reply"] == {"src": SERVER, "dst": SOFT, "icmp_id": 9000}
    assert not {"state", "timeout_s", "packets", "bytes", "slice", "origin"} & set(printed)


def test_other_protocols_have_no_ports() -> None:
    other = FlowTuple("50", ip_address(CLIENT), 0, ip_address(SERVER), 0)
    printed = flow_object(Flow(other, other.reversed(), Status(0), 1))
    assert printed["original"] == {"src": CLIENT, "dst": SERVER}


def test_json_keeps_every_letter() -> None:
    assert json.loads(json_line({"command": "käse\n"})) == {"command": "käse\n"}


WEB = (SERVER, 443)


@pytest.mark.parametrize(
    ("row", "name", "origin"),
    [
        (flow(((CLIENT, 39064), WEB), (SOFT, 9000)), "ams-1", Origin.FORWARDED),
        (flow(((CLIENT, 39064), WEB), (SOFT, 40000)), None, Origin.FORWARDED),
        (flow(((SOFT, 9001), WEB)), "ams-1", Origin.LOCAL),
        (flow(((SOFT, 9001), WEB), (SOFT, 63346)), "ams-1", Origin.LOCAL),
        (flow(((SOFT, 40000), WEB)), None, Origin.LOCAL),
        (flow((WEB, (SOFT, 9001))), "ams-1", None),
        (flow(((CLIENT, 39064), WEB)), None, None),
        (flow(((CLIENT, 39064), WEB), ("192.0.2.9", 9000)), None, None),
    ],
)
def test_slice_and_origin_of_a_flow(row: dict[str, object], name: str | None, origin: Origin | None) -> None:
    placement = place_flows(flows(row), SliceIndex((AMS,)))
    assert (placement.slice_of(0), placement.origin_of(0)) == (name, origin)


def test_flow_sent_on_to_a_client_is_forwarded() -> None:
    inbound = flow((WEB, (SOFT, 9001)), status=int(NATED & ~Status.SRC_NAT | Status.DST_NAT), present=int(Present.ID))
    inbound["reply_src"] = flow(((CLIENT, 1), WEB))["orig_src"]
    table = flows(inbound, flow(((SOFT, 9001), WEB)))
    placement = place_flows(table, SliceIndex((AMS,)))
    assert (placement.slice_of(0), placement.origin_of(0)) == ("ams-1", Origin.FORWARDED)
    assert placement.with_slice("ams-1").tolist() == [True, True]
    assert placement.with_origin(Origin.LOCAL).tolist() == [False, True]
    assert not np.any(placement.with_slice("other"))
