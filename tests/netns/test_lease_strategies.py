"""Each strategy keeps off whom it says, and nobody else: NAT flows and other sockets, on a real kernel."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from leasing import PORTS, SOFT, Desk, desk, forget_flows, newcomer, reset, sysctl, works

from bench.coexist.settings import apply, configuration
from nat_rewriter.config import read_policy
from nat_rewriter.errors import LeaseLost, SliceExhausted, UnsupportedFeature, UsageError
from nat_rewriter.lease import STRATEGIES, Lessor
from netns_lab import Lab
from netns_lab.capture import SYN
from netns_lab.topology import UPLINK

TIMES = 1000 if os.environ.get("NATCTL_LONG") else 30
HELD = [name for name, each in STRATEGIES.items() if each.holds]
WAYS = [(name, protocol) for name, each in STRATEGIES.items() for protocol in each.protocols]
FAMILIES = pytest.mark.parametrize("family", [4, 6])
ANOTHER_SERVER = "203.0.113.2"
ETH_P_ALL = 3
GOODBYE_S = 3.0
# What bind() and connect() say to those who come too late.
REFUSED = (errno.EADDRINUSE, errno.EADDRNOTAVAIL)


@FAMILIES
@pytest.mark.parametrize(("strategy", "protocol"), WAYS)
def test_a_connection_leaves_with_the_leased_port(at: Desk, family: int, strategy: str, protocol: str) -> None:
    with at.acquire(strategy, family, protocol) as lease:
        sock = lease.connect()
        assert works(sock)
        assert at.servers[protocol].peers == [(str(lease.way.src), lease.port)]
        assert sock.getsockname()[1] == lease.port == lease.wire_port()
        assert lease.port in PORTS
    assert lab_is_clean(at)


def lab_is_clean(at: Desk) -> bool:
    """Tell whether nothing of a lease is left but what TCP leaves of a connection, once its ends have said goodbye.

    That takes a moment; a reservation that was left behind would stay for a term, which is longer.
    """
    end = time.monotonic() + GOODBYE_S
    while not (clean := _is_clean(at)) and time.monotonic() < end:
        time.sleep(0.05)
    return clean


def _is_clean(at: Desk) -> bool:
    left = [line for line in at.entries() if "TIME_WAIT" not in line and "LAST_ACK" not in line]
    return not left and not at.entries("udp") and not [line for line in at.sockets() if "TIME-WAIT" not in line]


@FAMILIES
@pytest.mark.parametrize("strategy", HELD)
def test_nat_flows_are_kept_off_exactly_where_the_strategy_says_so(at: Desk, family: int, strategy: str) -> None:
    seen = set()
    for _ in range(TIMES):
        with at.acquire(strategy, family) as lease:
            wire, near = at.nat_flow(lease.port, family)
            seen.add(wire == lease.port)
            reset(near)
        forget_flows(at.lab)
    assert seen == {not STRATEGIES[strategy].against_nat}


@FAMILIES
@pytest.mark.parametrize("strategy", ["reservation", "complete"])
def test_nat_flows_of_udp_are_kept_off(at: Desk, family: int, strategy: str) -> None:
    for _ in range(5):
        with at.acquire(strategy, family, "udp") as lease:
            wire, near = at.nat_flow(lease.port, family, "udp")
            assert wire != lease.port
            near.close()
            assert works(lease.connect())


@FAMILIES
@pytest.mark.parametrize("strategy", HELD)
def test_other_sockets_are_kept_off_exactly_where_the_strategy_says_so(at: Desk, family: int, strategy: str) -> None:
    seen = set()
    for _ in range(TIMES):
        with at.acquire(strategy, family) as lease:
            seen.add(newcomer(at.lab, lease) in REFUSED)
    assert seen == {STRATEGIES[strategy].against_sockets}


@FAMILIES
@pytest.mark.parametrize(("strategy", "kept_off"), [("reservation", False), ("complete", True)])
def test_other_udp_sockets_are_kept_off_where_the_strategy_says_so(
    at: Desk, family: int, strategy: str, kept_off: bool
) -> None:
    with at.acquire(strategy, family, "udp") as lease:
        assert (newcomer(at.lab, lease) in REFUSED) is kept_off


@pytest.mark.parametrize("strategy", ["tcp-repair", "fast-open", "complete"])
def test_a_placeholder_leaves_its_port_to_other_destinations(at: Desk, strategy: str) -> None:
    with at.acquire(strategy) as lease:
        other = at.lab.egress.tcp_connect((ANOTHER_SERVER, at.port), src=(str(lease.way.src), lease.port))
        assert works(other)
        assert works(lease.connect())


@pytest.mark.parametrize("strategy", ["tcp-repair", "fast-open"])
def test_a_connection_that_nat_moved_is_not_handed_out(at: Desk, strategy: str) -> None:
    lease = at.acquire(strategy, port=9003)
    at.nat_flow(9003)
    with pytest.raises(LeaseLost, match="a NAT flow has it, packets left from port"):
        lease.connect()
    assert at.lessor.list_leases() == []


@pytest.mark.parametrize("ephemeral", ["32768 60999", "9000 60999"])
def test_port_range_notices_that_nat_moved_it_and_takes_another_port(
    lab_factory: Callable[..., Lab], ephemeral: str
) -> None:
    lab = lab_factory(slices=["198.51.100.10:9000-9099"])
    apply(lab, configuration(lab.slices))
    with desk(lab) as at, sysctl(lab, "net.ipv4.ip_local_port_range", ephemeral):
        flows = [at.nat_flow(port) for port in range(9000, 9040)]
        noticed = False
        while not noticed:  # the kernel picks by chance
            lease = at.acquire("port-range")
            try:
                lease.connect()
            except LeaseLost:
                noticed = True
        with at.connect("port-range") as other:
            assert other.wire_port() == other.port
        assert len(flows) == 40


def test_without_verification_the_gap_shows(lease_lab: Lab) -> None:
    with desk(lease_lab, verify=False) as at, at.acquire("fast-open", port=9003) as lease:
        at.nat_flow(9003)
        sock = lease.connect()
        assert sock.getsockname()[1] == 9003
        assert lease.wire_port() != 9003


@pytest.mark.parametrize("verify", [None, True])
def test_where_no_rule_rewrites_into_a_slice_the_wire_is_asked_only_on_demand(
    lease_lab: Lab, verify: bool | None
) -> None:
    without_rules = configuration(lease_lab.slices).partition("[[snat]]")[0]
    with (
        desk(lease_lab) as at,
        Lessor(read_policy(without_rules.encode(), "test"), verify=verify) as lessor,
        lessor.acquire("ams-1", at.to(), strategy="fast-open", port=9003) as lease,
    ):
        at.nat_flow(9003)  # by rules that this lessor does not know
        if verify:
            with pytest.raises(LeaseLost, match="a NAT flow has it, packets left from port"):
                lease.connect()
        else:
            lease.connect()
            assert lease.wire_port() != 9003


def test_a_refused_claim_is_passed_over_where_nat_is_not_kept_off(lab: Lab) -> None:
    apply(lab, configuration(lab.slices, coexist="refuse"))
    with desk(lab, coexist="refuse") as at:
        held = [at.nat_flow(port) for port in range(9000, 9005)]
        for _ in range(5):
            assert at.connect("fast-open").port >= 9005
        assert len(held) == 5


def test_auto_is_complete_or_under_split_what_needs_no_capability(lab: Lab) -> None:
    wanted = {"confine": "complete", "refuse": "complete", "off": "complete", "split": "fast-open"}
    for coexist, strategy in wanted.items():
        apply(lab, configuration(lab.slices, coexist=coexist))
        with desk(lab, coexist=coexist) as at, at.acquire("auto") as lease:
            assert lease.strategy.name == strategy
            assert works(lease.connect())
            assert coexist != "split" or lease.port >= 9005


def test_complete_uses_tcp_repair_where_fast_open_is_off(at: Desk) -> None:
    with sysctl(at.lab, "net.ipv4.tcp_fastopen", 0), at.acquire("complete") as lease:
        wire, _ = at.nat_flow(lease.port)
        assert wire != lease.port
        assert newcomer(at.lab, lease) in REFUSED
        assert works(lease.connect())
        with pytest.raises(UnsupportedFeature, match=r"bit 1 of sysctl net.ipv4.tcp_fastopen, found .*tcp_fastopen=0"):
            at.acquire("fast-open")


def test_a_slice_carries_as_many_leases_to_each_destination_as_it_has_ports(at: Desk) -> None:
    for strategy in ("reservation", "fast-open", "complete"):
        for server in (at.to()[0], ANOTHER_SERVER):
            leases = at.lessor.acquire_many("ams-1", (server, at.port), 10, strategy=strategy)
            assert sorted(lease.port for lease in leases) == list(PORTS)
            with pytest.raises(SliceExhausted, match="no tcp port of slice ams-1 is free towards"):
                at.lessor.acquire("ams-1", (server, at.port), strategy=strategy)
        at.lessor.release_many(at.lessor.list_leases())
    assert (at.entries(), at.sockets()) == ([], [])


def test_acquire_many_gives_all_or_none(at: Desk) -> None:
    at.nat_flow(9004)
    with pytest.raises(SliceExhausted):
        at.lessor.acquire_many("ams-1", at.to(), 10)
    assert (at.entries(), at.sockets()) == ([], [])
    assert len(at.lessor.acquire_many("ams-1", at.to(), 9)) == 9


@FAMILIES
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("ephemeral", ["32768 60999", "9000 60999", "9005 60999"])
def test_port_range_stays_in_the_slice_whatever_the_kernel_clamps(
    at: Desk, family: int, protocol: str, ephemeral: str
) -> None:
    with sysctl(at.lab, "net.ipv4.ip_local_port_range", ephemeral):
        leases = [at.connect("port-range", family, protocol) for _ in range(10)]
        assert sorted(lease.port for lease in leases) == list(PORTS)
        assert [lease.socket is not None and works(lease.socket) for lease in leases] == [True] * 10
        with pytest.raises(SliceExhausted):
            at.connect("port-range", family, protocol)


def test_port_range_uses_reserved_ports_by_hand(at: Desk) -> None:
    with (
        sysctl(at.lab, "net.ipv4.ip_local_port_range", "9000 60999"),
        sysctl(at.lab, "net.ipv4.ip_local_reserved_ports", "9000-9009"),
    ):
        assert {at.connect("port-range").port for _ in range(10)} == set(PORTS)


@pytest.mark.parametrize("strategy", ["tcp-repair", "fast-open"])
def test_udp_has_no_placeholders_of_tcp(at: Desk, strategy: str) -> None:
    with pytest.raises(UsageError, match="is for TCP only, expected for udp one of auto, reservation, port-range, "):
        at.acquire(strategy, protocol="udp")


@contextmanager
def first_sequences(at: Desk) -> Iterator[list[int]]:
    """Yield a list that has, after the block, the initial sequence number of each SYN that left the host."""
    with at.lab.egress.enter():
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        tap.bind((UPLINK, ETH_P_ALL))
    seen: list[int] = []
    with tap:
        yield seen
        with contextlib.suppress(BlockingIOError):
            while frame := tap.recv(2048, socket.MSG_DONTWAIT):
                if frame[26:30] == socket.inet_aton(SOFT[4]) and frame[47] == SYN:
                    seen.append(struct.unpack_from("!I", frame, 38)[0])


@pytest.mark.parametrize("strategy", ["tcp-repair", "fast-open"])
def test_initial_sequence_numbers_are_the_kernels_own(at: Desk, strategy: str) -> None:
    with first_sequences(at) as seen:
        for _ in range(6):
            at.connect(strategy)
    assert len(set(seen)) == 6
    assert max(seen) - min(seen) > 1 << 24  # those of a socket that was in repair would begin near 0
