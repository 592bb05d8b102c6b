"""sock_diag on a real kernel, with `ss` as the oracle that nobody here wrote."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from own_network import connection, own_network, run

from nat_rewriter.errors import PermissionNeeded
from nat_rewriter.kernel.sockets import destroy_socket, find_owners, list_sockets
from nat_rewriter.model.flows import address_from_halves
from nat_rewriter.model.sockets import SOCKET_STATES

CLIENT, SERVER = "10.0.0.2", "203.0.113.1"
CLIENT6, SERVER6 = "fd00::2", "2001:db8:1::1"
# The names of SOCKET_STATES as `ss` spells them.
SS_STATES = {
    "ESTAB": "ESTABLISHED",
    "SYN-SENT": "SYN_SENT",
    "SYN-RECV": "NEW_SYN_RECV",
    "FIN-WAIT-1": "FIN_WAIT1",
    "FIN-WAIT-2": "FIN_WAIT2",
    "TIME-WAIT": "TIME_WAIT",
    "UNCONN": "CLOSE",
    "CLOSE-WAIT": "CLOSE_WAIT",
    "LAST-ACK": "LAST_ACK",
    "LISTEN": "LISTEN",
    "CLOSING": "CLOSING",
}


@pytest.fixture
def network() -> Iterator[None]:
    with own_network(f"{CLIENT}/32", f"{SERVER}/32", f"{CLIENT6}/128", f"{SERVER6}/128"):
        run("ip route add blackhole 192.0.2.0/24")
        yield


@pytest.fixture
def sockets(network: None) -> Iterator[None]:
    """Sockets of every sort and of most states."""
    with ExitStack() as held:
        for client, server in ((CLIENT, SERVER), (CLIENT6, SERVER6)):
            held.enter_context(connection(client, server, 443, 30443))
            _, theirs = held.enter_context(connection(client, server, 80, 30080))
            theirs.shutdown(socket.SHUT_WR)
            with connection(client, server, 81, 30081):
                pass
            held.enter_context(socket.create_server((server, 8443), family=family_of(server)))
            bound = held.enter_context(socket.socket(family_of(client), socket.SOCK_DGRAM))
            bound.bind((client, 5353))
            connected = held.enter_context(socket.socket(family_of(client), socket.SOCK_DGRAM))
            connected.bind((client, 5354))
            connected.connect((server, 53))
        held.enter_context(mapped_connection())
        wait_for({"FIN_WAIT2", "TIME_WAIT"}, gone={"FIN_WAIT1", "LAST_ACK"})
        yield


def wait_for(states: set[str], gone: set[str]) -> None:
    """Wait until the last delayed acknowledgements have come."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = {SOCKET_STATES[state] for state in list_sockets(["tcp"])["state"].tolist()}
        if states <= found and not gone & found:
            return
        time.sleep(0.01)
    raise AssertionError(f"sockets are still {found}")


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@contextmanager
def mapped_connection() -> Iterator[socket.socket]:
    """A connection over IPv4 between IPv6 sockets; yields the client's end."""
    with socket.socket(socket.AF_INET6) as listener, socket.socket(socket.AF_INET6) as ours:
        listener.bind((f"::ffff:{SERVER}", 9443))
        listener.listen()
        ours.bind((f"::ffff:{CLIENT}", 39443))
        ours.connect((f"::ffff:{SERVER}", 9443))
        with listener.accept()[0]:
            yield ours


def shown(record: Any) -> tuple[Any, ...]:
    family = int(record["family"])
    return (
        {6: "tcp", 17: "udp"}[int(record["protocol"])],
        SOCKET_STATES[int(record["state"])],
        address_from_halves(record["src"], family),
        int(record["sport"]),
        address_from_halves(record["dst"], family),
        int(record["dport"]),
        int(record["inode"]),
        int(record["cookie"]),
    )


def ss() -> list[tuple[Any, ...]]:
    """Return the sockets as `ss` shows them, in the words of :func:`shown`."""
    return [read_ss(line) for line in run("ss -tuanOeH").splitlines()]


def read_ss(line: str) -> tuple[Any, ...]:
    protocol, state, _, _, ours, theirs, *rest = line.split()
    extended = " ".join(rest)
    src, sport = endpoint(ours)
    dst, dport = endpoint(theirs)
    if dst is None:
        dst = ip_address("::" if src.version == 6 else "0.0.0.0")
    inode = re.search(r"\bino:(\d+)", extended)
    cookie = re.search(r"\bsk:([0-9a-f]+)", extended)
    assert cookie is not None, line
    return (
        protocol,
        SS_STATES[state],
        src,
        sport,
        dst,
        dport,
        int(inode[1]) if inode else 0,
        int(cookie[1], 16),
    )


def endpoint(text: str) -> tuple[Any, int]:
    address, _, port = text.rpartition(":")
    number = 0 if port == "*" else int(port)
    if address == "*":
        return None, number
    parsed = ip_address(address.strip("[]").partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    return mapped or parsed, number


def test_the_list_equals_what_ss_shows(sockets: None) -> None:
    listed = sorted(map(str, map(shown, list_sockets())))
    assert len(listed) >= 20
    assert listed == sorted(map(str, ss()))


def test_states_of_every_sort_are_listed(sockets: None) -> None:
    states = {SOCKET_STATES[state] for state in list_sockets()["state"].tolist()}
    assert states >= {"ESTABLISHED", "LISTEN", "FIN_WAIT2", "CLOSE_WAIT", "TIME_WAIT", "CLOSE"}


def test_an_ipv6_socket_that_talks_ipv4_holds_an_ipv4_tuple(sockets: None) -> None:
    ipv4 = list_sockets(["tcp"], [4])
    assert set(ipv4["family"].tolist()) == {4}
    mapped = [shown(record) for record in ipv4 if int(record["sport"]) == 39443]
    assert [(entry[2], entry[4]) for entry in mapped] == [(ip_address(CLIENT), ip_address(SERVER))]
    ipv6 = list_sockets(["tcp"], [6])
    assert set(ipv6["family"].tolist()) == {6}
    assert 39443 not in ipv6["sport"].tolist()


def test_only_the_protocols_asked_for_are_listed(sockets: None) -> None:
    assert set(list_sockets(["udp"])["protocol"].tolist()) == {17}
    assert set(list_sockets(["tcp"])["protocol"].tolist()) == {6}
    assert len(list_sockets([])) == 0


def test_an_empty_namespace_has_no_sockets(network: None) -> None:
    assert len(list_sockets()) == 0


def test_many_sockets_are_listed_once_each(network: None) -> None:
    with ExitStack() as held:
        for _ in range(500):
            opened = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            opened.bind((CLIENT, 0))
        listed = list_sockets(["udp"])
    assert len(listed) == len(set(listed["inode"].tolist())) == 500


def test_owners_are_found_by_inode(network: None) -> None:
    with socket.create_server((SERVER, 443)) as listener:
        inode = os.fstat(listener.fileno()).st_ino
        assert list_sockets(["tcp"])["inode"].tolist() == [inode]
        owners = find_owners([inode, 0, 1])
    assert set(owners) == {inode}
    assert owners[inode].pid == os.getpid()
    assert owners[inode].command == Path("/proc/self/comm").read_text().strip()


def test_nobody_is_looked_for_without_inodes() -> None:
    assert find_owners([]) == {}
    assert find_owners([0]) == {}


def test_a_destroyed_socket_tells_its_application_at_once(network: None) -> None:
    with connection(CLIENT, SERVER, 443, 30443) as (ours, theirs):
        record = next(record for record in list_sockets(["tcp"]) if int(record["sport"]) == 30443)
        assert destroy_socket(record)
        with pytest.raises(ConnectionAbortedError):
            ours.recv(1)
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)
        assert not destroy_socket(record)


def test_a_hanging_connect_is_ended(network: None) -> None:
    run("ip route add 192.0.2.1/32 dev lo")
    run("ip neigh add 192.0.2.1 lladdr 00:00:00:00:00:01 dev lo")
    with socket.socket() as ours:
        ours.bind((CLIENT, 30443))
        ours.setblocking(False)
        assert ours.connect_ex(("192.0.2.1", 443)) == errno.EINPROGRESS
        assert destroy_socket(list_sockets(["tcp"])[0])
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNABORTED


def test_an_ipv6_socket_is_destroyed(network: None) -> None:
    with connection(CLIENT6, SERVER6, 443, 30443) as (ours, _):
        record = next(record for record in list_sockets(["tcp"]) if int(record["sport"]) == 30443)
        assert destroy_socket(record)
        with pytest.raises(ConnectionAbortedError):
            ours.recv(1)


def test_an_ipv6_socket_that_talks_ipv4_is_destroyed(network: None) -> None:
    with mapped_connection() as ours:
        record = next(record for record in list_sockets(["tcp"]) if int(record["sport"]) == 39443)
        assert destroy_socket(record)
        with pytest.raises(ConnectionAbortedError):
            ours.recv(1)


def test_a_udp_socket_is_destroyed(network: None) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        ours.bind((CLIENT, 5353))
        ours.connect((SERVER, 53))
        assert destroy_socket(list_sockets(["udp"])[0])
        with pytest.raises(ConnectionAbortedError):
            ours.recv(1)


def test_another_socket_with_the_same_tuple_is_not_hit(network: None) -> None:
    with connection(CLIENT, SERVER, 443, 30443) as (ours, theirs):
        record = next(record for record in list_sockets(["tcp"]) if int(record["sport"]) == 30443).copy()
        record["cookie"] += 1
        assert not destroy_socket(record)
        theirs.sendall(b"x")
        assert ours.recv(1) == b"x"


def test_destroying_needs_a_capability_and_listing_needs_none(network: None) -> None:
    with socket.create_server((SERVER, 443)), multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_without_capabilities) == (1, "CAP_NET_ADMIN")


def _without_capabilities() -> tuple[int, str]:
    # capset(2), version 3: no capability is left.
    assert ctypes.CDLL(None).capset(struct.pack("=Ii", 0x20080522, 0), bytes(24)) == 0
    listed = list_sockets(["tcp"])
    try:
        destroy_socket(listed[0])
    except PermissionNeeded as error:
        return len(listed), error.capability
    return len(listed), ""
