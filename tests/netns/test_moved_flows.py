"""Conntrack entries that are made as another host had them."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address

import pytest
from own_network import own_network, run

from nat_rewriter.kernel.conntrack import dump, insert_flow
from nat_rewriter.kernel.moved_flows import insert_flows, let_flows_end
from nat_rewriter.model.flows import Flow, Status, flow_from_record
from nat_rewriter.model.tuples import FlowTuple
from nat_rewriter.report.flow_text import flow_json_lines
from nat_rewriter.report.listed_flows import read_listing

TRANSLATED = Status.SEEN_REPLY | Status.ASSURED | Status.CONFIRMED | Status.SRC_NAT_DONE | Status.DST_NAT_DONE
FAMILIES = pytest.mark.parametrize(
    ("client", "server", "soft"),
    [("10.0.0.2", "203.0.113.1", "198.51.100.10"), ("2001:db8:10::2", "2001:db8:203::1", "2001:db8:100::10")],
)


def rewritten(protocol: str, client: str, server: str, soft: str, state: str | None = None) -> Flow:
    """A forwarded flow from port 40000 that leaves from port 9216."""
    original = FlowTuple(protocol, ip_address(client), 40000, ip_address(server), 443)
    reply = FlowTuple(protocol, ip_address(server), 443, ip_address(soft), 9216)
    return Flow(original, reply, TRANSLATED | Status.SRC_NAT, 0, mark=7, state=state, timeout_s=300)


def listed() -> list[Flow]:
    return [flow_from_record(each) for each in dump()]


def same(flow: Flow) -> Flow:
    """What of a flow is the same on every host."""
    return replace(flow, id=0, timeout_s=None, packets=None, bytes=None, start_ns=None, icmp=None)


@FAMILIES
def test_entries_are_made_as_they_were(client: str, server: str, soft: str) -> None:
    tcp = rewritten("tcp", client, server, soft, "ESTABLISHED")
    closing = replace(tcp, original=replace(tcp.original, sport=40001), reply=replace(tcp.reply, dport=9217))
    flows = [tcp, replace(closing, state="FIN_WAIT"), rewritten("udp", client, server, soft)]
    inbound = FlowTuple("tcp", ip_address(server), 50000, ip_address(soft), 9220)
    answer = FlowTuple("tcp", ip_address(client), 80, ip_address(server), 50000)
    flows.append(Flow(inbound, answer, TRANSLATED | Status.DST_NAT, 0, state="ESTABLISHED", timeout_s=300))
    with own_network():
        assert insert_flows(flows) == []
        there = dump()
    assert {same(flow_from_record(each)) for each in there} == {same(each) for each in flows}
    assert all(290 <= each["timeout_s"] <= 300 for each in there)
    with own_network():
        lines = flow_json_lines(there, [None] * len(there), [None] * len(there))
        assert insert_flows([each.flow for each in read_listing(lines)]) == []
        assert {same(each) for each in listed()} == {same(each) for each in flows}


def test_echoes_move_too() -> None:
    original = FlowTuple("icmp", ip_address("10.0.0.2"), 77, ip_address("203.0.113.1"), 77)
    reply = FlowTuple("icmp", ip_address("203.0.113.1"), 9216, ip_address("198.51.100.10"), 9216)
    with own_network():
        assert insert_flows([Flow(original, reply, TRANSLATED | Status.SRC_NAT, 0, timeout_s=30)]) == []
        (there,) = listed()
    assert (there.original.sport, there.reply.dport) == (77, 9216)


@FAMILIES
def test_what_is_in_the_way(client: str, server: str, soft: str) -> None:
    moved = rewritten("tcp", client, server, soft, "ESTABLISHED")
    begun_in_between = replace(moved, reply=replace(moved.reply, dport=9400))
    with own_network():
        insert_flows([begun_in_between])
        assert insert_flows([moved]) == []
        assert [each.reply.dport for each in listed()] == [9216]
        other = replace(moved, original=replace(moved.original, sport=41000))
        assert insert_flows([other]) == [other]
        assert [each.original.sport for each in listed()] == [40000]


def test_entries_end_in_their_time_whatever_comes() -> None:
    original = FlowTuple("udp", ip_address("127.0.0.1"), 40000, ip_address("127.0.0.1"), 9)
    with own_network(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        run("nft -f -", "table ip t { chain c { type filter hook output priority 0; ct state new drop; }; }")
        insert_flow(original, 600)
        let_flows_end(listed(), 3)
        sender.bind(("127.0.0.1", 40000))
        deadline = time.monotonic() + 30
        while listed():
            assert time.monotonic() < deadline
            with suppress(OSError):
                sender.sendto(b"more", ("127.0.0.1", 9))
            time.sleep(0.2)
        let_flows_end([Flow(original, original.reversed(), Status(0), 0)], 3)  # no such entry any more


def test_many_at_once() -> None:
    flow = rewritten("tcp", "10.0.0.2", "203.0.113.1", "198.51.100.10", "ESTABLISHED")
    ends = [(replace(flow.original, sport=20000 + number), replace(flow.reply, dport=number)) for number in range(1000)]
    flows = [replace(flow, original=original, reply=reply) for original, reply in ends]
    with own_network():
        assert insert_flows(flows) == []
        assert len(listed()) == 1000
        assert insert_flows(flows[:100]) == []
        let_flows_end(flows, 1)
