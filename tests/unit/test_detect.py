"""Every kind of finding from hand-made tables, each beside its near miss."""

from __future__ import annotations

import dataclasses
import time
from ipaddress import ip_address
from typing import Any

import numpy as np
import pytest
from tables import AMS, AMS6, CLIENT, NATED, SERVER, SOFT, SOFT6, flow, flows, socket, sockets

from nat_rewriter.detect import DETECTORS, FindingTracker, HostSettings, Loss, Observation, find_findings
from nat_rewriter.detect.ownership import NOBODY, SliceIndex
from nat_rewriter.model.findings import Finding, FlowParty, Kind, SocketParty
from nat_rewriter.model.flows import FLOW_FIELDS, Event, Present, Status
from nat_rewriter.model.policy import Coexist
from nat_rewriter.model.slices import PortRange, PortSet, Protocol, Slice

WEB = (SERVER, 443)
HOLDER = flow(((CLIENT, 39064), WEB), (SOFT, 9000), id=1203944)
UNANSWERED = int(Status.CONFIRMED | Status.SRC_NAT | Status.SRC_NAT_DONE | Status.DST_NAT_DONE)


def look(*rows: dict[str, Any], listed: tuple[dict[str, Any], ...] = (), **fields: Any) -> list[Finding]:
    index = SliceIndex(fields.pop("slices", (AMS, AMS6)))
    return find_findings(Observation(index, flows=flows(*rows), sockets=sockets(*listed), **fields))


def kinds(*rows: dict[str, Any], **fields: Any) -> list[Kind]:
    return [finding.kind for finding in look(*rows, **fields)]


def test_every_kind_has_a_detector() -> None:
    assert set(DETECTORS) == set(Kind)


def test_nothing_is_wrong_with_nothing() -> None:
    assert look() == []
    assert find_findings(Observation(SliceIndex(()))) == []


# port-leaked and port-remapped


def test_leaked_port_names_holder_victim_and_both_ports() -> None:
    leaked = flow(((SOFT, 9000), WEB), (SOFT, 63346))
    (finding,) = look(HOLDER, leaked, listed=(socket((SOFT, 9000), WEB),))
    assert finding.kind is Kind.PORT_LEAKED
    assert (finding.slice, finding.protocol, finding.wire_sport) == ("ams-1", "tcp", 63346)
    assert str(finding.tuple) == f"tcp {SOFT}:9000 {SERVER}:443"
    assert finding.victim == SocketParty(inode=81233)
    assert finding.holder == FlowParty("nat-flow", CLIENT, 39064, 1203944)
    assert "63346" in finding.message
    assert f"{CLIENT}:39064" in finding.message


def test_port_moved_within_the_slice_is_remapped() -> None:
    remapped = flow(((SOFT, 9000), WEB), (SOFT, 9004))
    (finding,) = look(HOLDER, remapped, listed=(socket((SOFT, 9000), WEB),))
    assert (finding.kind, finding.wire_sport) == (Kind.PORT_REMAPPED, 9004)


def test_port_of_another_slice_is_remapped_too() -> None:
    other = Slice("ams-2", AMS.address, (PortRange(9100, 9109),), AMS.protocols)
    moved = flow(((SOFT, 9000), WEB), (SOFT, 9105))
    (finding,) = look(HOLDER, moved, listed=(socket((SOFT, 9000), WEB),), slices=(AMS, other))
    assert (finding.kind, finding.slice) == (Kind.PORT_REMAPPED, "ams-1")


def test_port_of_the_slice_for_another_protocol_is_leaked() -> None:
    tcp = Slice("t", AMS.address, (PortRange(9000, 9009),), (Protocol.TCP,))
    udp = Slice("u", AMS.address, (PortRange(9100, 9109),), (Protocol.UDP,))
    moved = flow(((SOFT, 9000), WEB), (SOFT, 9105))
    assert kinds(HOLDER, moved, listed=(socket((SOFT, 9000), WEB),), slices=(tcp, udp)) == [Kind.PORT_LEAKED]


@pytest.mark.parametrize("protocol", ["udp", "icmp"])
def test_leaked_port_of_other_protocols(protocol: str) -> None:
    holder = flow(((CLIENT, 39064), WEB), (SOFT, 9000), protocol=protocol)
    leaked = flow(((SOFT, 9000), WEB), (SOFT, 63346), protocol=protocol)
    (finding,) = look(holder, leaked, listed=(socket((SOFT, 9000), WEB, protocol=protocol),))
    assert (finding.kind, finding.protocol) == (Kind.PORT_LEAKED, protocol)
    assert finding.holder == FlowParty("nat-flow", CLIENT, 39064, 1000)


def test_collision_of_echo_ids_is_settled_as_if_the_destination_were_rewritten() -> None:
    status = int(Status.CONFIRMED | Status.DST_NAT | Status.SRC_NAT_DONE | Status.DST_NAT_DONE)
    holder = flow(((CLIENT, 9000), WEB), (SOFT, 9000), protocol="icmp")
    leaked = flow(((SOFT, 9000), WEB), (SOFT, 0), protocol="icmp", status=status)
    (finding,) = look(holder, leaked)
    assert (finding.kind, finding.wire_sport) == (Kind.PORT_LEAKED, 0)
    redirected = flow(((SOFT, 9001), WEB), (SOFT, 9002), status=status)
    assert kinds(redirected, listed=(socket((SOFT, 9001), WEB),)) == []


def test_leaked_port_over_ipv6() -> None:
    server = ("2001:db8::1", 443)
    holder = flow((("fd00::2", 39064), server), (SOFT6, 9000))
    leaked = flow(((SOFT6, 9000), server), (SOFT6, 63346))
    (finding,) = look(holder, leaked, listed=(socket((SOFT6, 9000), server),))
    assert (finding.kind, finding.slice) == (Kind.PORT_LEAKED, "ams-6")
    assert isinstance(finding.holder, FlowParty)
    assert finding.holder.src == "fd00::2"
    assert "[fd00::2]:39064" in finding.message


def test_unconnected_socket_is_the_victim_of_udp() -> None:
    leaked = flow(((SOFT, 9000), WEB), (SOFT, 63346), protocol="udp")
    bound = socket((SOFT, 9000), state="CLOSE", protocol="udp", inode=5)
    everywhere = socket(("0.0.0.0", 9000), state="CLOSE", protocol="udp", inode=6)
    for listed, inode in [((bound, everywhere), 5), ((everywhere,), 6)]:
        (finding,) = look(leaked, listed=listed, slices=(AMS,))
        assert finding.victim == SocketParty(inode=inode)


def test_flow_stands_for_a_victim_whose_socket_is_gone() -> None:
    leaked = flow(((SOFT, 9000), WEB), (SOFT, 63346), state="TIME_WAIT", id=7)
    (finding,) = look(HOLDER, leaked)
    assert finding.victim == FlowParty("local-flow", SOFT, 9000, 7)


def test_holder_in_another_zone_is_no_holder() -> None:
    leaked = flow(((SOFT, 9000), WEB), (SOFT, 63346), zone=3)
    (finding,) = look(HOLDER, leaked, listed=(socket((SOFT, 9000), WEB),))
    assert finding.holder is None


def test_destination_rewritten_too() -> None:
    """The port is contested towards where the packets really go."""
    leaked = flow(((SOFT, 9000), ("192.0.2.7", 80)), (SOFT, 63346))
    leaked |= {"reply_src": HOLDER["reply_src"], "reply_sport": 443}
    (finding,) = look(HOLDER, leaked, listed=(socket((SOFT, 9000), ("192.0.2.7", 80)),))
    assert finding.holder == FlowParty("nat-flow", CLIENT, 39064, 1203944)


@pytest.mark.parametrize(
    "near_miss",
    [
        pytest.param(flow(((SOFT, 9001), WEB)), id="kept its port"),
        pytest.param(flow(((SOFT, 9001), WEB), (SOFT, 9001)), id="rewritten to itself"),
        pytest.param(flow(((SOFT, 9001), WEB), (SOFT, 63346), status=int(NATED & ~Status.SRC_NAT)), id="no SRC_NAT"),
        pytest.param(flow(((SOFT, 9001), WEB), (SOFT, 63346), event=int(Event.DESTROY)), id="destroyed"),
        pytest.param(flow((("192.0.2.9", 9001), WEB), ("192.0.2.9", 63346)), id="another address"),
        pytest.param(flow(((CLIENT, 9001), WEB), (SOFT, 9002)), id="forwarded"),
    ],
)
def test_near_misses_of_rewritten_ports(near_miss: dict[str, Any]) -> None:
    assert not {Kind.PORT_LEAKED, Kind.PORT_REMAPPED} & set(kinds(HOLDER, near_miss))


def test_port_outside_every_slice_that_was_kept_is_the_guards_business() -> None:
    assert kinds(flow(((SOFT, 40000), WEB)), listed=(socket((SOFT, 40000), WEB),)) == []


# tuple-shared and socket-untracked


def test_placeholder_and_nat_flow_share_a_tuple() -> None:
    (finding,) = look(HOLDER, listed=(socket((SOFT, 9000), WEB, "SYN_SENT"),))
    assert finding.kind is Kind.TUPLE_SHARED
    assert finding.holder == FlowParty("nat-flow", CLIENT, 39064, 1203944)
    assert finding.victim == SocketParty(inode=81233)


def test_idle_socket_is_untracked() -> None:
    (finding,) = look(HOLDER, listed=(socket((SOFT, 9001), WEB),))
    assert (finding.kind, finding.slice) == (Kind.SOCKET_UNTRACKED, "ams-1")


@pytest.mark.parametrize(
    ("rows", "listed"),
    [
        pytest.param([flow(((SOFT, 9001), WEB))], socket((SOFT, 9001), WEB), id="own entry"),
        pytest.param([flow((WEB, (SOFT, 9001)))], socket((SOFT, 9001), WEB), id="accepted"),
        pytest.param([], socket((SOFT, 9001), WEB, "TIME_WAIT", inode=0), id="time-wait"),
        pytest.param([], socket((SOFT, 9001), state="LISTEN"), id="listener"),
        pytest.param([], socket((SOFT, 9101), WEB), id="outside the slice"),
        pytest.param([], socket(("192.0.2.9", 9001), WEB), id="another address"),
    ],
)
def test_near_misses_of_untracked_sockets(rows: list[dict[str, Any]], listed: dict[str, Any]) -> None:
    assert kinds(*rows, listed=(listed,)) == []


# slice-exhausted and slice-pressure


def fill(count: int, protocol: str = "tcp", server: tuple[str, int] = WEB) -> list[dict[str, Any]]:
    return [
        flow(((CLIENT, 30000 + number), server), (SOFT, 9000 + number), protocol=protocol) for number in range(count)
    ]


@pytest.mark.parametrize(("protocol", "where"), [("tcp", f"{SERVER}:443"), ("udp", f"{SERVER}:443"), ("icmp", SERVER)])
def test_full_slice_is_exhausted_for_one_destination(protocol: str, where: str) -> None:
    (finding,) = look(*fill(10, protocol), *fill(3, protocol, ("203.0.113.2", 443)))
    assert (finding.kind, finding.slice, finding.protocol) == (Kind.SLICE_EXHAUSTED, "ams-1", protocol)
    assert finding.extra == {
        "destination": where, "used": 10, "capacity": 10, "free": 0, "findable": 0, "find_chance": 0.0,
    }  # fmt: skip


def test_nearly_full_slice_is_under_pressure() -> None:
    (finding,) = look(*fill(9))
    assert (finding.kind, finding.extra["used"]) == (Kind.SLICE_PRESSURE, 9)
    assert kinds(*fill(8)) == []
    assert kinds(*fill(8), pressure=0.7) == [Kind.SLICE_PRESSURE]
    assert kinds(*fill(9), pressure=0.95) == []


def test_ports_are_counted_once_and_destroyed_entries_never() -> None:
    twice = flow(((CLIENT, 1), WEB), (SOFT, 9003))
    assert kinds(*fill(8), twice, twice, twice) == []
    gone = flow(((CLIENT, 1), WEB), (SOFT, 9009), event=int(Event.DESTROY))
    assert kinds(*fill(9), gone) == [Kind.SLICE_PRESSURE]


def test_protocols_ports_and_zones_do_not_add_up() -> None:
    assert kinds(*fill(7), *fill(7, "udp"), *fill(7, server=(SERVER, 80))) == []
    assert kinds(*fill(7), *[row | {"zone": 1} for row in fill(10)[7:]]) == []


def test_split_slice_is_full_when_its_rewriting_part_is() -> None:
    split = AMS._replace(socket_ranges=(PortRange(9008, 9009),))
    (finding,) = look(*fill(8), slices=(split,), coexist=Coexist.SPLIT)
    assert (finding.kind, finding.extra["capacity"]) == (Kind.SLICE_EXHAUSTED, 8)


# entries that outlived what they were made for


def test_entry_without_a_socket_is_orphaned() -> None:
    (finding,) = look(flow(((SOFT, 9001), WEB)))
    assert (finding.kind, finding.slice) == (Kind.ENTRY_ORPHANED, "ams-1")
    assert finding.holder == FlowParty("local-flow", SOFT, 9001, 1000)


@pytest.mark.parametrize(
    ("row", "listed"),
    [
        pytest.param(flow(((SOFT, 9001), WEB)), socket((SOFT, 9001), WEB, "TIME_WAIT", inode=0), id="time-wait socket"),
        pytest.param(flow(((SOFT, 9001), WEB), state="TIME_WAIT"), None, id="ending"),
        pytest.param(flow(((SOFT, 9101), WEB)), None, id="outside the slice"),
        pytest.param(flow(((SOFT, 9001), WEB), protocol="icmp"), None, id="no socket to be seen"),
        pytest.param(
            flow(((SOFT, 9001), WEB), protocol="udp"), socket((SOFT, 9001), state="CLOSE", protocol="udp"), id="bound"
        ),
    ],
)
def test_near_misses_of_orphans(row: dict[str, Any], listed: dict[str, Any] | None) -> None:
    assert kinds(row, listed=(listed,) if listed else ()) == []


def stuck(**fields: Any) -> dict[str, Any]:
    return flow(((SOFT, 9000), WEB), (SOFT, 63346), protocol="udp", status=UNANSWERED, **fields)


def test_unanswered_entry_outlives_its_holder() -> None:
    bound = (socket((SOFT, 9000), WEB, protocol="udp"),)
    assert kinds(stuck(), listed=bound) == [Kind.PORT_LEAKED, Kind.ENTRY_STUCK]
    counted = stuck(present=int(Present.COUNTERS), packets=(2, 0))
    assert kinds(counted, listed=bound) == [Kind.PORT_LEAKED, Kind.ENTRY_STUCK]


def test_near_misses_of_stuck_entries() -> None:
    bound = (socket((SOFT, 9000), WEB, protocol="udp"),)
    holder = flow(((CLIENT, 39064), WEB), (SOFT, 9000), protocol="udp")
    assert kinds(holder, stuck(), listed=bound) == [Kind.PORT_LEAKED]
    assert kinds(stuck(present=int(Present.COUNTERS), packets=(1, 0)), listed=bound) == [Kind.PORT_LEAKED]
    answered = stuck() | {"status": int(NATED)}
    assert kinds(answered, listed=bound) == [Kind.PORT_LEAKED]


def test_flow_on_ports_given_away_is_stranded() -> None:
    (finding,) = look(flow(((CLIENT, 39064), WEB), (SOFT, 9100)))
    assert (finding.kind, finding.wire_sport) == (Kind.FLOW_STRANDED, 9100)
    assert kinds(flow(((CLIENT, 39064), WEB), (SOFT, 9001))) == []
    assert kinds(flow(((CLIENT, 39064), WEB), ("192.0.2.9", 9100))) == []


# sockets that stand where they should not


def test_placeholder_takes_the_replies_of_a_forwarded_flow() -> None:
    waiting = socket((SOFT, 9001), WEB, "SYN_SENT")
    answered = flow(((SOFT, 9001), WEB), state="SYN_RECV")
    (finding,) = look(answered, listed=(waiting,))
    assert (finding.kind, finding.holder) == (Kind.REPLY_CAPTURED, SocketParty(inode=81233))
    assert kinds(answered, listed=(socket((SOFT, 9001), WEB),)) == [Kind.REPLY_CAPTURED]
    assert kinds(answered, listed=(waiting | {"ifindex": 1},)) == []
    assert kinds(answered, listed=(waiting,), host=HostSettings(tcp_early_demux=False)) == []
    assert kinds(flow(((SOFT, 9001), WEB), state="SYN_SENT"), listed=(waiting,)) == []


def test_socket_on_a_port_for_rewriting() -> None:
    split = AMS._replace(socket_ranges=(PortRange(9008, 9009),))
    fields: dict[str, Any] = {"slices": (split,), "coexist": Coexist.SPLIT}
    for end in ((SOFT, 9000), ("0.0.0.0", 9000), ("::", 9000)):
        (finding,) = look(listed=(socket(end, state="LISTEN"),), **fields)
        assert (finding.kind, finding.slice) == (Kind.FOREIGN_BIND, "ams-1")
    listener, accepted = socket((SOFT, 9000), state="LISTEN", inode=1), socket((SOFT, 9000), WEB, inode=2)
    (finding,) = look(flow((WEB, (SOFT, 9000))), listed=(accepted, listener), **fields)
    assert finding.holder == SocketParty(inode=1)


def test_near_misses_of_foreign_binds() -> None:
    split = AMS._replace(socket_ranges=(PortRange(9008, 9009),))
    assert kinds(listed=(socket((SOFT, 9000), state="LISTEN"),)) == []
    for end in ((SOFT, 9008), ("0.0.0.0", 9008), ("192.0.2.9", 9000), ("0.0.0.0", 22)):
        assert kinds(listed=(socket(end, state="LISTEN"),), slices=(split,), coexist=Coexist.SPLIT) == []


# the host as a whole


def test_drift_lists_its_differences() -> None:
    (finding,) = look(drift=("chain a differs", "set b is missing"))
    assert finding.kind is Kind.RULESET_DRIFT
    assert finding.extra["differences"] == ["chain a differs", "set b is missing"]


def test_loss_says_how_many_entries_changed() -> None:
    (finding,) = look(loss=Loss(2, added=3, removed=4, changed=5))
    assert (finding.kind, finding.extra["entries"], finding.extra["events"]) == (Kind.EVENTS_LOST, 12, 2)


def test_ephemeral_range_over_a_slice() -> None:
    covering = HostSettings(PortRange(9005, 60999))
    (finding,) = look(host=covering, slices=(AMS,))
    assert (finding.kind, finding.extra["ports"]) == (Kind.EPHEMERAL_OVERLAP, ["9005-9009"])
    assert kinds(host=HostSettings(PortRange(32768, 60999))) == []
    assert kinds(host=HostSettings(PortRange(9005, 60999), (PortRange(9000, 9009),))) == []
    split = AMS._replace(socket_ranges=(PortRange(9005, 9009),))
    assert kinds(host=covering, slices=(split,), coexist=Coexist.SPLIT) == []


# the index and the tracker


def test_index_agrees_with_the_slices() -> None:
    psid = Slice("psid", ip_address("192.0.2.1"), PortSet(6, 8, 52).ranges(), (Protocol.TCP,))
    alike = Slice("alike", ip_address("2001:db8:6::10"), (PortRange(1, 65535),), (Protocol.UDP,))
    index = SliceIndex((AMS, AMS6, psid, alike))
    for each in index.slices:
        column = np.array([[int(each.address) >> 64, int(each.address) & (2**64 - 1)]] * 65536, dtype=np.uint64)
        numbers = index.find_addresses(column, np.full(65536, each.address.version, dtype=np.uint8))
        for protocol, number in ((Protocol.TCP, 6), (Protocol.UDP, 17), (Protocol.ICMP, 58)):
            owners = index.owners(numbers, np.full(65536, number, dtype=np.uint8), np.arange(65536))
            owned = {int(port) for port in np.flatnonzero(owners != NOBODY)}
            assert owned == (
                {port for port in range(65536) if each.owns(port)} if protocol in each.protocols else set()
            )
            assert {index.slice_name(int(one)) for one in owners[list(owned)]} <= {each.name}


def test_tracker_tells_each_finding_once() -> None:
    tracker = FindingTracker()
    finding = look(drift=("one",))[0]
    assert tracker.add([finding]) == [(finding, True)]
    assert tracker.replace([dataclasses.replace(finding, message="seen again")]) == []
    assert tracker.replace([]) == [(finding, False)]
    assert tracker.open == []


def test_a_million_flows_take_a_fraction_of_a_second() -> None:
    rng = np.random.default_rng(1)
    count, width = 1_000_000, 100
    slices = tuple(
        Slice(f"s{n}", ip_address("198.51.100.0") + n, (PortRange(1024, 65535),), (Protocol.TCP,)) for n in range(width)
    )
    many = np.zeros(count, dtype=FLOW_FIELDS)
    many["family"], many["protocol"], many["status"] = 4, 6, int(NATED)
    many["orig_src"][:, 1] = rng.integers(1 << 24, 2 << 24, count)
    many["reply_src"][:, 1] = rng.integers(1 << 31, (1 << 31) + 5000, count)
    many["reply_dst"][:, 1] = int(slices[0].address) + rng.integers(0, width, count)
    many["reply_dport"] = rng.integers(1024, 65536, count)
    many["reply_sport"] = 443
    started = time.process_time()
    assert find_findings(Observation(SliceIndex(slices), flows=many)) == []
    assert time.process_time() - started < 2.5  # 0.4 s on an idle machine
