"""Events of conntrack entries, and what becomes of those that were lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from own_network import connection, run, send_udp, set_sysctl
from tracked import CLIENT, SERVER, SOFT, insert_many, tracked_network

from nat_rewriter.flowtable import TableState
from nat_rewriter.kernel import conntrack
from nat_rewriter.kernel.conntrack import EventStream, Groups
from nat_rewriter.kernel.flow_table import FlowTable
from nat_rewriter.model.flows import Event, Status, flow_from_record


@pytest.fixture(autouse=True)
def _network() -> Iterator[None]:
    with tracked_network():
        yield


def test_events_tell_new_changed_and_destroyed_entries_apart() -> None:
    with EventStream() as events:
        with connection(CLIENT, SERVER, 443, 30443) as (ours, _):
            ours.sendall(b"x")
        batch = events.read(1)
        run("conntrack -D -p tcp --orig-port-src 30443")
        ended = events.read(1)
    kinds = [Event(int(record["event"])) for record in batch.records]
    assert kinds[0] is Event.NEW
    assert set(kinds[1:]) == {Event.UPDATE}
    assert [Event(int(record["event"])) for record in ended.records] == [Event.DESTROY]
    assert len({int(record["key"]) for record in (*batch.records, *ended.records)}) == 1
    assert batch.overruns == ended.overruns == 0
    assert ended.drained


def test_the_new_event_has_the_rewritten_port_and_the_key_of_the_dump() -> None:
    with EventStream(Groups.NEW) as events, connection(CLIENT, SERVER, 443, 30443):
        batch = events.read(1)
        entries = conntrack.dump()
    assert batch.records["event"].tolist() == [Event.NEW]
    assert batch.records["key"].tolist() == entries["key"].tolist()
    entry = flow_from_record(batch.records[0])
    assert Status.SRC_NAT in entry.status
    assert entry.reply.dst == ip_address(SOFT)


def test_only_the_groups_asked_for_are_heard() -> None:
    with EventStream(Groups.DESTROY) as events:
        send_udp(CLIENT, 40000, SERVER, 53)
        assert len(events.read(0.05).records) == 0
        run("conntrack -F")
        assert events.read(1).records["event"].tolist() == [Event.DESTROY]


def test_reading_waits_no_longer_than_told() -> None:
    with EventStream() as events:
        began = time.monotonic()
        batch = events.read(0.1)
        assert 0.09 <= time.monotonic() - began < 2
    assert len(batch.records) == 0
    assert batch.drained


def test_entries_older_than_the_listener_have_events_where_the_sysctl_says_so() -> None:
    """With the default, 2, it depends on whether anybody on the whole machine listened when the entry came."""
    set_sysctl("net.netfilter.nf_conntrack_events", 1)
    send_udp(CLIENT, 40000, SERVER, 53)
    with EventStream() as events:
        send_udp(CLIENT, 40000, SERVER, 53, answered=True)
        run("conntrack -F")
        assert events.read(1).records["event"].tolist() == [Event.UPDATE, Event.DESTROY]


def test_events_that_do_not_fit_are_counted() -> None:
    with EventStream(buffer_bytes=16384) as events:
        assert 0 < events.buffer_bytes < 65536
        insert_many(200)
        received, lost = 0, 0
        while not (batch := events.read(0)).drained or batch.overruns:
            received += len(batch.records)
            lost += batch.overruns
        received += len(batch.records)
        assert 0 < received < 200
        assert received + lost == 200
        insert_many(1, first_port=5000)
        after = events.read(1)
        assert (len(after.records), after.overruns) == (1, 0)


def test_losses_while_the_buffer_is_not_emptied_are_counted_as_well() -> None:
    """The kernel says ENOBUFS once, and is silent until the buffer was empty: the counter of the socket is not."""
    with EventStream(buffer_bytes=16384) as events:
        insert_many(100)
        first = events.read(0)
        insert_many(100, first_port=3000)
        insert_many(100, first_port=4000)
        total = len(first.records) + first.overruns
        while not (batch := events.read(0)).drained:
            total += len(batch.records) + batch.overruns
        total += len(batch.records) + batch.overruns
    assert total == 300


def test_the_table_follows_the_kernel_through_a_loss() -> None:
    with EventStream(buffer_bytes=16384) as events:
        table = FlowTable()
        table.resync(conntrack.dump())
        insert_many(150)
        while not (batch := events.read(0)).drained or batch.overruns:
            table.apply(batch.records)
            if batch.overruns:
                table.mark_stale()
        table.apply(batch.records)
        assert table.state is TableState.STALE
        table.begin_resync()
        for part in conntrack.dump_batches(size=50):
            table.take_dump(part)
            table.apply(events.read(0).records)
        result = table.finish_resync()
    assert table.state is TableState.LIVE
    assert len(result.added) > 0
    assert sorted(table.records()["key"].tolist()) == sorted(conntrack.dump()["key"].tolist())
