"""Leases that cannot be had or used: the reason is told, and nothing is left behind; in an event loop as well."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest
from leasing import SERVERS, SOFT, Desk, reset

from nat_rewriter.errors import ConnectFailed, LeaseError, NatctlError, UsageError
from nat_rewriter.lease import STRATEGIES, aio
from netns_lab import Lab

ALL = list(STRATEGIES)
SILENT = 999
FAMILIES = pytest.mark.parametrize("family", [4, 6])


def deafen(lab: Lab, port: int) -> None:
    """Let the server's host answer nothing on a port."""
    lab.server.nft(f"table inet deaf {{ chain c {{ type filter hook input priority 0; tcp dport {port} drop; }}; }}")


@FAMILIES
@pytest.mark.parametrize("strategy", ALL)
def test_nothing_is_left_where_the_server_refuses(at: Desk, family: int, strategy: str) -> None:
    at.servers["tcp"].close()
    for _ in range(3):
        with pytest.raises(ConnectFailed, match="connect from lease: connection refused: 'tcp "):
            at.acquire(strategy, family).connect()
    assert (at.entries(), at.sockets(), at.lessor.list_leases()) == ([], [], [])


@FAMILIES
@pytest.mark.parametrize("strategy", ALL)
def test_nothing_is_left_where_the_server_is_silent(at: Desk, family: int, strategy: str) -> None:
    deafen(at.lab, at.port)
    try:
        with pytest.raises(ConnectFailed, match=r"no answer within 0\.2 s: 'tcp ") as caught:
            at.acquire(strategy, family).connect(0.2)
    finally:
        at.lab.server.nft("delete table inet deaf")
    assert caught.value.errno == errno.ETIMEDOUT
    assert (at.entries(), at.sockets(), at.lessor.list_leases()) == ([], [], [])


@pytest.mark.parametrize("strategy", ALL)
def test_a_reset_after_the_connection_stood_is_the_callers_to_see(at: Desk, strategy: str) -> None:
    at.servers["tcp"].close()
    with at.lab.server.open_socket(socket.SOCK_STREAM) as listener:
        listener.bind(at.to())
        listener.listen()
        with at.acquire(strategy) as lease:
            sock = lease.connect()
            reset(listener.accept()[0])
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
    left = [line for line in at.entries() if " CLOSE " not in line]
    assert (left, at.sockets()) == ([], [])


def test_without_a_route_nothing_is_left(at: Desk) -> None:
    at.lab.egress.run(["ip", "route", "add", "unreachable", "203.0.113.77"])
    for strategy in ALL:
        with pytest.raises(ConnectFailed, match="no route to host: 'tcp "):
            at.lessor.acquire("ams-1", ("203.0.113.77", 443), strategy=strategy).connect()
    assert at.lessor.list_leases() == []
    assert at.lab.egress.run(["conntrack", "-L", "-d", "203.0.113.77"]).stdout == ""


def test_words_that_fit_no_slice(at: Desk) -> None:
    wrong: list[tuple[dict[str, object], str]] = [
        ({"slice_name": "fra-1"}, "no slice of that name, expected one of ams-1, ams-2: 'fra-1'"),
        ({"protocol": "sctp"}, "expected a protocol of slice ams-1: tcp, udp: 'sctp'"),
        ({"strategy": "magic"}, "choose strategy: expected one of auto, reservation, tcp-repair, "),
        ({"to": (SERVERS[6], 443)}, "expected an IPv4 address as the slice has one"),
        ({"to": (SERVERS[4], 0)}, "expected a destination port from 1 to 65535"),
        ({"port": 8999}, "expected a port of slice ams-1 that is for sockets: '8999'"),
        ({"port": 9000, "strategy": "port-range"}, "the kernel picks the port under port-range"),
    ]
    for words, message in wrong:
        options = {"slice_name": "ams-1", "to": at.to()} | words
        with pytest.raises(UsageError, match=message):
            at.lessor.acquire(**options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="expected a count of at least 1"):
        at.lessor.acquire_many("ams-1", at.to(), 0)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "", "a" * 300, "\udcff"])
def test_a_name_without_an_address(at: Desk, host: str) -> None:
    with pytest.raises(LeaseError, match="resolve destination: "):
        at.lessor.acquire("ams-1", (host, 443))


def test_an_address_that_is_not_on_the_host(at: Desk) -> None:
    at.lab.egress.run(["ip", "address", "del", f"{SOFT[4]}/32", "dev", "lo"])
    try:
        for strategy in ("fast-open", "port-range", "complete"):
            with pytest.raises(NatctlError, match="the address is not one of this host"):
                at.acquire(strategy).connect()
    finally:
        at.lab.egress.run(["ip", "address", "add", f"{SOFT[4]}/32", "dev", "lo"])
    assert at.entries() == []


# In an event loop.


def test_leases_in_an_event_loop(at: Desk) -> None:
    async def talk(strategy: str) -> bytes:
        async with aio.leased(at.lessor, "ams-1", at.to(), strategy=strategy) as lease:
            reader, writer = await asyncio.open_connection(sock=await aio.connect(lease))
            writer.write(b"natctl")
            answer = await reader.readexactly(6)
            writer.close()
            return answer

    async def talk_all() -> list[bytes]:
        return await asyncio.gather(*(talk(strategy) for strategy in ALL))

    assert asyncio.run(talk_all()) == [b"natctl"] * len(ALL)
    assert at.lessor.list_leases() == []


def test_a_silent_server_a_refusal_and_a_cancelled_task_in_an_event_loop(at: Desk) -> None:
    async def attempt(host: str, port: int, timeout_s: float = 0.2) -> str:
        async with aio.leased(at.lessor, "ams-1", (host, port), strategy="complete") as lease:
            try:
                await aio.connect(lease, timeout_s)
            except ConnectFailed as error:
                return error.detail
        return ""

    async def attempts() -> tuple[str, str, bool, str]:
        refused = await attempt(SERVERS[4], 1)
        silent = await attempt(SERVERS[4], SILENT)
        task = asyncio.create_task(attempt(SERVERS[4], SILENT, 60))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait([task])
        with pytest.raises(LeaseError) as caught:
            await aio.acquire(at.lessor, "ams-1", ("no-such-host.invalid", 443))
        return refused, silent, task.cancelled(), caught.value.operation

    deafen(at.lab, SILENT)
    refused, silent, cancelled, unresolved = asyncio.run(attempts())
    at.lab.server.nft("delete table inet deaf")
    assert refused.startswith("connection refused")
    assert silent.startswith("no answer within 0.2 s")
    assert cancelled
    assert unresolved == "resolve destination"
    assert at.lessor.list_leases() == []
