"""Leases in time: kept, mended, given back, ended with their process; and every way to fail, with nothing left."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from leasing import CLIENTS, PORTS, SOFT, Desk, desk, forget_flows, newcomer, sysctl, works
from waiting import WITHIN_S, wait_until

from bench.coexist.settings import configuration
from nat_rewriter.errors import LeaseError, LeaseLost, SliceExhausted, UsageError
from nat_rewriter.kernel import lease_ends
from nat_rewriter.lease import STRATEGIES, Lease, Lessor, State
from netns_lab import Lab

ALL = list(STRATEGIES)
TERM_S = 2
SILENT = 999
FAMILIES = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture
def brief(lease_lab: Lab) -> Iterator[Desk]:
    """A desk whose entries last two seconds if nobody renews them."""
    with desk(lease_lab, term_s=TERM_S) as opened:
        yield opened


@pytest.fixture
def rarely(lease_lab: Lab) -> Iterator[Desk]:
    """A desk whose keeper looks at entries every two hundred seconds, so that what is mended sooner is by events."""
    with desk(lease_lab, term_s=600) as opened:
        yield opened


def delete_entries(at: Desk) -> None:
    forget_flows(at.lab)


# Kept and mended.


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_held_lease_outlives_its_term(brief: Desk, protocol: str) -> None:
    with brief.acquire("reservation", protocol=protocol) as lease:
        time.sleep(2 * TERM_S)
        assert brief.flow_of(lease) is not None
        assert not lease.lost
        assert works(lease.connect())
    assert brief.lessor.mended == 0


@FAMILIES
@pytest.mark.parametrize("strategy", ["reservation", "complete"])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_an_entry_that_is_gone_is_made_again_as_it_goes(
    rarely: Desk, family: int, strategy: str, protocol: str
) -> None:
    with rarely.acquire(strategy, family, protocol) as lease:
        delete_entries(rarely)
        wait_until(lambda: rarely.lessor.mended == 1, "the entry is mended")
        assert rarely.flow_of(lease) is not None
        assert works(lease.connect())


@pytest.mark.parametrize("strategy", ["reservation", "complete"])
def test_an_entry_that_goes_without_an_event_is_made_again(brief: Desk, strategy: str) -> None:
    with sysctl(brief.lab, "net.netfilter.nf_conntrack_events", 0), brief.acquire(strategy) as lease:
        delete_entries(brief)
        assert brief.flow_of(lease) is None
        wait_until(lambda: brief.lessor.mended == 1, "the entry is mended")
        assert brief.flow_of(lease) is not None


def test_all_entries_are_looked_at_when_events_were_lost(rarely: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_ends, "_RECEIVE_BYTES", 1)
    leases = rarely.lessor.acquire_many("ams-1", rarely.to(), 10, strategy="reservation")
    delete_entries(rarely)
    wait_until(lambda: len(rarely.entries()) == 10, "the entries are mended")
    assert not any(lease.lost for lease in leases)


def test_what_others_and_the_lessor_itself_end_is_no_loss(rarely: Desk) -> None:
    with rarely.acquire("reservation") as kept:
        rarely.nat_flow(kept.port)
        for _ in range(3):
            rarely.acquire("reservation").release()
        rarely.lab.egress.run(["conntrack", "-D", "-s", CLIENTS[4]])
        delete_entries(rarely)
        wait_until(lambda: rarely.lessor.mended == 1, "the entry is mended")
    assert rarely.lessor.mended == 1


def send_reset(lab: Lab, source: tuple[str, int], to: tuple[str, int]) -> None:
    """Send a TCP reset out of the blue, from the server's host."""
    header = struct.pack("!HHIIBBHHH", source[1], to[1], 12345, 0, 5 << 4, 0x04, 0, 0, 0)
    pseudo = socket.inet_aton(source[0]) + socket.inet_aton(to[0]) + struct.pack("!BBH", 0, socket.IPPROTO_TCP, 20)
    total = sum(struct.unpack("!16H", pseudo + header))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    with lab.server.open_socket(socket.SOCK_RAW, socket.AF_INET, socket.IPPROTO_TCP) as raw:
        raw.bind((source[0], 0))
        raw.sendto(header[:16] + struct.pack("!H", checksum) + header[18:], (to[0], 0))


def test_a_stray_reset_does_not_end_a_reservation(at: Desk) -> None:
    with at.acquire("reservation") as lease, at.lab.egress.capture("up0") as capture:
        send_reset(at.lab, at.to(), (SOFT[4], lease.port))
        assert capture.wait_for(lambda packet: packet.tuple == lease.tuple.reversed())
        assert at.flow_of(lease) is not None
        wire, _ = at.nat_flow(lease.port)
        assert wire != lease.port


def test_a_reset_that_ends_an_entry_another_socket_has_taken_over_is_mended(rarely: Desk) -> None:
    rarely.servers["tcp"].close()
    with rarely.acquire("reservation") as lease:
        assert newcomer(rarely.lab, lease) == errno.ECONNREFUSED
        wait_until(lambda: rarely.lessor.mended == 1, "the entry is mended")
        assert rarely.flow_of(lease) is not None


def test_a_lease_whose_tuple_nat_has_taken_meanwhile_is_lost_and_says_so(brief: Desk) -> None:
    # Without events NAT has the time that it takes.
    with sysctl(brief.lab, "net.netfilter.nf_conntrack_events", 0), brief.acquire("complete", port=9003) as lease:
        delete_entries(brief)
        assert brief.nat_flow(9003)[0] == 9003
        wait_until(lambda: lease.lost, "the loss is noticed")
        with pytest.raises(LeaseError, match="the lease is lost"):
            lease.connect()
    assert brief.sockets() == []


def test_a_connection_that_another_socket_took_over_a_reservation_for_is_left_to_it(brief: Desk) -> None:
    lease = brief.acquire("reservation")
    with brief.lab.egress.enter():
        other = brief.lab.egress.tcp_connect(brief.to(), src=(str(lease.way.src), lease.port))
    time.sleep(TERM_S)
    lease.release()
    flow = brief.flow_of(lease)
    assert flow is not None
    assert flow.timeout_s is not None
    assert flow.timeout_s > 1000  # not cut short by the keeper
    assert works(other)


def test_a_udp_lease_keeps_its_entry_while_nothing_is_sent(brief: Desk) -> None:
    with brief.acquire("complete", protocol="udp") as lease:
        sock = lease.connect()
        time.sleep(2 * TERM_S)
        wire, _ = brief.nat_flow(lease.port, protocol="udp")
        assert wire != lease.port
        assert works(sock)


# Given back.


@pytest.mark.parametrize("strategy", ALL)
def test_nothing_is_left_of_a_lease_that_was_only_held(at: Desk, strategy: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with at.acquire(strategy):
        pass
    assert (at.entries(), at.sockets(), at.lessor.list_leases()) == ([], [], [])
    # The lessor's netlink sockets, for requests and for ends, and what wakes its keeper.
    assert len(os.listdir("/proc/self/fd")) <= before + 3


@pytest.mark.parametrize("strategy", ["reservation", "fast-open", "tcp-repair", "complete"])
def test_ports_are_used_in_turn_and_come_back_at_once(at: Desk, strategy: str) -> None:
    ports = []
    for _ in range(30):
        with at.acquire(strategy) as lease:
            assert works(lease.connect())
            ports.append(lease.port)
    assert sorted(ports[:10]) == list(PORTS)
    assert ports[:10] * 3 == ports


def test_a_port_whose_connection_stands_is_passed_over(at: Desk) -> None:
    kept = at.connect("complete").detach()
    for _ in range(9):
        at.connect("complete")
    with pytest.raises(SliceExhausted):
        at.acquire("complete")
    assert works(kept)
    kept.close()


def test_a_detached_socket_is_the_callers(at: Desk) -> None:
    with at.connect("complete") as lease:
        sock = lease.detach()
    assert works(sock)
    with pytest.raises(LeaseError, match="the lease is released"):
        lease.detach()
    sock.close()


def test_releasing_twice_and_connecting_afterwards(at: Desk) -> None:
    lease = at.acquire("complete")
    lease.release()
    lease.release()
    with pytest.raises(LeaseError, match="connect from lease: the lease is released"):
        lease.connect()


def test_two_lessors_never_have_the_same_tuple(at: Desk, lease_lab: Lab) -> None:
    for strategy in ("reservation", "complete", "fast-open", "tcp-repair"):
        with desk(lease_lab) as other:
            ours = at.lessor.acquire_many("ams-1", at.to(), 5, strategy=strategy)
            theirs = other.lessor.acquire_many("ams-1", at.to(), 5, strategy=strategy)
            assert sorted(lease.port for lease in [*ours, *theirs]) == list(PORTS)
            with pytest.raises(SliceExhausted):
                at.acquire(strategy)
            with pytest.raises(LeaseLost, match="the tuple is taken"):
                at.acquire(strategy, port=theirs[0].port)
            at.lessor.release_many(ours)


def test_threads_share_a_lessor(at: Desk) -> None:
    wrong: list[object] = []

    def work() -> None:
        with at.lab.egress.enter():
            for _ in range(25):
                with at.connect("complete") as lease:
                    if lease.socket is None or not works(lease.socket):
                        wrong.append(lease)

    with ThreadPoolExecutor(4) as threads:
        for worked in [threads.submit(work) for _ in range(4)]:
            worked.result(60)
    assert wrong == []
    assert at.lessor.list_leases() == []


# The end of the process.

HOLDER = """
import sys, time
from ipaddress import ip_address
from nat_rewriter.config import read_policy
from nat_rewriter.lease import Lessor
lessor = Lessor(read_policy(sys.stdin.buffer.read(), "test"), term_s=2)
leases = [lessor.acquire_many("ams-1", (sys.argv[1], int(sys.argv[2])), 4, strategy=name) for name in sys.argv[3:]]
print("held", flush=True)
time.sleep(600)
"""


def start_holder(at: Desk, *strategies: str) -> subprocess.Popen[str]:
    process = at.lab.egress.popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), at.to()[0], str(at.port), *strategies], stdin=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(configuration(at.lab.slices))
    process.stdin.close()
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_holder_that_was_killed(at: Desk, end: signal.Signals) -> None:
    holder = start_holder(at, "reservation", "complete")
    assert len(at.entries()) == 8
    assert len(at.sockets()) == 4
    time.sleep(2 * TERM_S)
    assert len(at.entries()) == 8
    holder.send_signal(end)
    holder.wait(WITHIN_S)
    wait_until(lambda: at.entries() == [], "the entries end")
    assert at.sockets() == []
    assert len(at.lessor.acquire_many("ams-1", at.to(), 10)) == 10


def test_the_states_of_a_lease(at: Desk) -> None:
    lease: Lease = at.acquire("complete")
    states = [lease.state]
    lease.connect()
    states.append(lease.state)
    lease.release()
    assert [*states, lease.state] == [State.HELD, State.CONNECTED, State.RELEASED]


def test_a_term_that_is_too_short(at: Desk) -> None:
    with pytest.raises(UsageError, match="expected a term of at least 2 seconds"):
        Lessor(at.lessor.policy, term_s=1)
