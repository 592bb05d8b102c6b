"""``apply --drain``: nothing new begins on what is withdrawn, what is there has its time, and only that is ended."""

from __future__ import annotations

import errno
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from operating import NATCTL, listing, outcomes, unordered
from waiting import WITHIN_S, wait_until

from netns_lab import Lab, round_trip
from netns_lab.topology import SERVER, SERVER_6, SOFT_ADDRESS, SOFT_ADDRESS_6

SLICES = [
    f"{SOFT_ADDRESS}:9000-9009",
    f"{SOFT_ADDRESS}:9100-9109",
    f"[{SOFT_ADDRESS_6}]:9000-9009",
    f"[{SOFT_ADDRESS_6}]:9100-9109",
]
DNAT = '[[dnat]]\nname = "in"\nslice = "ams-2"\nports = ["9109"]\nto = "10.0.0.2"\n'
DNAT += '[[dnat]]\nname = "in6"\nslice = "ams-4"\nports = ["9109"]\nto = "2001:db8:10::2"\n'
GONE = (errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.EPIPE)
FAMILIES = pytest.mark.parametrize(
    ("server", "soft", "clients"),
    [(SERVER, SOFT_ADDRESS, "10.0.0.0/24"), (SERVER_6, SOFT_ADDRESS_6, "2001:db8:10::/64")],
)


@pytest.fixture
def old(lab_factory: Callable[..., Lab], state: Path, request: pytest.FixtureRequest) -> Lab:
    """A lab in which clients have the slices ams-2 and ams-4, all of them to be withdrawn."""
    lab = lab_factory(slices=SLICES)
    lab.natctl("apply", "--config", config(lab, getattr(request, "param", "confine"), old=True), expect=0)
    lab.server.tcp_server(443)
    lab.server.udp_server(53)
    return lab


def config(lab: Lab, coexist: str = "confine", *, old: bool = False) -> Path:
    """Return a configuration in which the clients have ams-2 and ams-4; or one without these, and ams-1 and ams-3."""
    path = lab.config(coexist=coexist, extra=DNAT if old else "")
    text = path.read_text()
    for first, second in (("ams-1", "ams-2"), ("ams-3", "ams-4")):
        text = text.replace(f'slices = ["{first}", "{second}"]', f'slices = ["{second if old else first}"]')
    if not old:
        parts = text.split("\n\n")
        text = "\n\n".join(part for part in parts if 'name = "ams-2"' not in part and 'name = "ams-4"' not in part)
    path.write_text(text)
    return path


def start(lab: Lab, path: Path, seconds: float) -> subprocess.Popen[str]:
    """Start a withdrawal, and return once no new flows are let in."""
    process = lab.egress.popen([*NATCTL, "apply", "--drain", str(seconds), "--config", path])
    wait_until(lambda: process.poll() is not None or is_draining(lab), "the slices are draining")
    assert process.poll() is None, process.communicate()
    return process


def is_draining(lab: Lab) -> bool:
    return "set draining4" in listing(lab)


def wire_ports(lab: Lab, clients: str) -> set[int]:
    """Return the ports that the flows of clients have on the wire."""
    flows = lab.natctl("flows", "--json", "--config", config(lab), expect=0).lines()
    family = ":" in clients
    return {
        flow["reply"]["dport"] for flow in flows if "dport" in flow["reply"] and (":" in flow["reply"]["src"]) is family
    }


@FAMILIES
def test_a_slice_is_withdrawn_when_its_flows_have_ended(old: Lab, server: str, soft: str, clients: str) -> None:
    held = old.client.tcp_connect((server, 443))
    assert round_trip(held)
    process = start(old, config(old), 60)
    assert round_trip(held)  # the guard lets it through
    fresh = old.client.tcp_connect((server, 443))
    assert round_trip(fresh)
    assert {port // 100 for port in wire_ports(old, clients)} == {90, 91}  # the new one is on the slice that stays
    held.close()
    stdout, stderr = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 0, stderr
    assert re.search(r"ams-2, ams-4: 1 flow left, ended in (60|5\d) s", stderr), stderr
    assert "withdrawn: ams-2, ams-4: " in stdout
    assert " 0 of sockets here" in stdout
    assert round_trip(fresh)
    assert not is_draining(old)
    old.natctl("diff", "--config", config(old), expect=0)
    assert outcomes(old)[-1][2] == "applied"
    assert old.leaks().total == 0


@FAMILIES
def test_exactly_the_flows_that_are_left_are_ended(old: Lab, server: str, soft: str, clients: str) -> None:
    leaving = [old.client.tcp_connect((server, 443)) for _ in range(3)]
    datagrams = old.client.udp_connect((server, 53))
    own = old.egress.tcp_connect((server, 443), src=(soft, 9105))
    stays = old.egress.tcp_connect((server, 443), src=(soft, 9005))
    unrelated = old.egress.tcp_connect((server, 443))
    assert all(map(round_trip, (*leaving, datagrams, own, stays, unrelated)))
    done = old.natctl("apply", "--json", "--drain", "1", "--config", config(old), expect=0).json()
    assert (done["withdrawn"], done["sockets"]) == (["ams-2", "ams-4"], 1)
    ended = {(flow["protocol"], flow["original"]["src"], flow["original"]["sport"]) for flow in done["ended"]}
    sockets = [("tcp", sock) for sock in (*leaving, own)] + [("udp", datagrams)]
    assert ended == {(protocol, *sock.getsockname()[:2]) for protocol, sock in sockets}
    with pytest.raises(OSError, match=r"abort|reset|refused") as told:
        own.recv(1)
    assert told.value.errno in GONE
    assert all(map(round_trip, (stays, unrelated)))
    for sock in leaving:  # the next packet belongs to no connection any more, and the server says so
        with suppress(OSError):
            sock.sendall(b"more")
        assert is_over(sock)
    assert 91 not in {port // 100 for port in wire_ports(old, clients)}
    old.natctl("diff", "--config", config(old), expect=0)


def is_over(sock: socket.socket) -> bool:
    """Tell whether a connection has been reset, or is as silent as one that is no more."""
    sock.settimeout(1)
    try:
        return sock.recv(1) == b""
    except (TimeoutError, ConnectionError):
        return True


@pytest.mark.parametrize("old", ["off", "confine", "refuse", "split"], indirect=True)
@FAMILIES
def test_nothing_new_begins_on_what_is_withdrawn(old: Lab, server: str, soft: str, clients: str) -> None:
    coexist = "split" if "rewrites4" in listing(old) else "refuse" if "claims4" in listing(old) else "confine"
    caller = old.client.tcp_server(9109)
    old.egress.tcp_server(9108)
    held = old.client.tcp_connect((server, 443))
    inbound = old.server.tcp_connect((soft, 9109))
    start(old, config(old, coexist), 60)
    for port in (9100, 9107):
        with pytest.raises(ConnectionRefusedError):
            old.egress.tcp_connect((server, 443), src=(soft, port))
    for port in (9109, 9108):  # once forwarded to a client, and to a listener here
        with pytest.raises((ConnectionRefusedError, TimeoutError)):
            old.server.tcp_connect((soft, port), timeout_s=0.5)
    assert len(caller.peers) == 1
    assert round_trip(held)
    assert round_trip(inbound)


def test_datagrams_are_refused_too(old: Lab) -> None:
    start(old, config(old), 60)
    sock = old.egress.udp_connect((SERVER, 53), src=(SOFT_ADDRESS, 9103))
    with suppress(OSError):
        sock.send(b"x")
    with pytest.raises((ConnectionRefusedError, PermissionError)):
        sock.recv(1)


def test_a_slice_that_shrinks_is_drained_of_the_rest(old: Lab) -> None:
    path = config(old, old=True)
    path.write_text(path.read_text().replace('"9100-9109"', '"9100-9104", "9109"'))
    inside = old.egress.tcp_connect((SERVER, 443), src=(SOFT_ADDRESS, 9102))
    outside = old.egress.tcp_connect((SERVER, 443), src=(SOFT_ADDRESS, 9107))
    done = old.natctl("apply", "--json", "--drain", "0", "--config", path, expect=0).json()
    assert [flow["original"]["sport"] for flow in done["ended"]] == [9107]
    assert round_trip(inside)
    with pytest.raises(ConnectionError):
        outside.recv(1)


def test_the_afterlife_of_a_connection_is_not_waited_for(old: Lab) -> None:
    closed = old.client.tcp_connect((SERVER, 443))
    closed.shutdown(socket.SHUT_RDWR)
    closed.close()
    began = time.monotonic()
    done = old.natctl("apply", "--drain", "60", "--config", config(old), expect=0)
    assert time.monotonic() - began < WITHIN_S
    assert "had to be ended, 0 of sockets here" in done.stdout
    assert not wire_ports(old, "10.0.0.0/24")


def test_without_withdrawals_it_is_an_apply_like_any_other(old: Lab) -> None:
    path = config(old, old=True)
    path.write_text(path.read_text().replace('guard = "drop"', 'guard = "count"'))
    held = old.client.tcp_connect((SERVER, 443))
    done = old.natctl("apply", "--drain", "60", "--config", path, expect=0)
    assert done.stdout.endswith("no slice was withdrawn\n")
    assert round_trip(held)


def test_a_first_apply_withdraws_nothing(lab: Lab, state: Path) -> None:
    assert "created" in lab.natctl("apply", "--drain", "60", "--config", lab.config(), expect=0).stdout


def test_what_is_not_known_cannot_be_withdrawn(old: Lab, tmp_path: Path) -> None:
    before = listing(old)
    done = old.natctl("apply", "--drain", "1", "--config", config(old), "--state", tmp_path / "none", expect=1)
    assert "no generation says what is applied now" in done.stderr
    assert unordered(listing(old)) == unordered(before)


@pytest.fixture
def interrupted(old: Lab) -> Iterator[Lab]:
    """A withdrawal that was ended while a flow was left."""
    held = old.client.tcp_connect((SERVER, 443))
    process = start(old, config(old), 60)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 1
    assert "natctl: drain: interrupted: no new flows begin on ams-2, ams-4, flows left: 1." in stderr
    assert "natctl apply --drain SECONDS goes on" in stderr
    assert outcomes(old)[-1][2] == "draining"
    assert is_draining(old)
    assert round_trip(held)
    yield old
    assert old.leaks().total == 0


def test_an_interrupted_withdrawal_can_go_on(interrupted: Lab) -> None:
    done = interrupted.natctl("apply", "--json", "--drain", "0", "--config", config(interrupted), expect=0).json()
    assert len(done["ended"]) == 1
    interrupted.natctl("diff", "--config", config(interrupted), expect=0)


def test_an_interrupted_withdrawal_can_be_cut_short(interrupted: Lab) -> None:
    interrupted.natctl("apply", "--config", config(interrupted), expect=0)
    interrupted.natctl("diff", "--config", config(interrupted), expect=0)
    found = interrupted.natctl("check", "--json", "--config", config(interrupted)).lines()
    assert [finding["kind"] for finding in found] == ["flow-stranded"]


def test_an_interrupted_withdrawal_can_be_taken_back(interrupted: Lab) -> None:
    interrupted.natctl("apply", "--rollback", expect=0)
    interrupted.natctl("diff", "--config", config(interrupted, old=True), expect=0)
    assert round_trip(interrupted.client.tcp_connect((SERVER, 443)))


def test_a_killed_withdrawal_can_go_on(old: Lab) -> None:
    held = old.client.tcp_connect((SERVER, 443))
    process = start(old, config(old), 60)
    process.kill()
    process.wait()
    assert round_trip(held)
    assert outcomes(old)[-1][2] in ("draining", "unfinished")
    done = old.natctl("apply", "--json", "--drain", "0", "--config", config(old), expect=0).json()
    assert len(done["ended"]) == 1


def test_nobody_else_applies_meanwhile(old: Lab) -> None:
    old.client.tcp_connect((SERVER, 443))
    process = start(old, config(old), 60)
    refused = old.natctl("apply", "--config", config(old, old=True), expect=1)
    assert f"held by process {process.pid}" in refused.stderr
