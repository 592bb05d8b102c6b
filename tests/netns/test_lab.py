"""The lab itself: who reaches whom, what the upstream drops and counts, and that nothing is left behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest
from users import ORDINARY

from nat_rewriter.errors import NatctlError, UsageError
from netns_lab import Lab, namespaces, round_trip, state
from netns_lab.lab import list_leftovers, take_down
from netns_lab.topology import CLIENT, CLIENT_6, SERVER, SERVER_6, SOFT_ADDRESS, SOFT_ADDRESS_6

LabFactory = Callable[..., Lab]
BOTH = pytest.mark.parametrize(("server", "soft"), [(SERVER, SOFT_ADDRESS), (SERVER_6, SOFT_ADDRESS_6)])


@BOTH
def test_a_socket_on_a_port_of_the_slice_reaches_the_server(lab: Lab, server: str, soft: str) -> None:
    tcp, udp = lab.server.tcp_server(443), lab.server.udp_server(53)
    assert round_trip(lab.egress.tcp_connect((server, 443), src=(soft, 9000)))
    assert round_trip(lab.egress.udp_connect((server, 53), src=(soft, 9001)))
    assert lab.egress.ping(server, src=soft, ident=9002)
    assert (tcp.wait_for_peers(1), udp.wait_for_peers(1)) == ([(soft, 9000)], [(soft, 9001)])
    assert lab.leaks().total == 0


@BOTH
def test_packets_outside_the_slice_are_counted_and_their_replies_lost(lab: Lab, server: str, soft: str) -> None:
    family = "6" if ":" in soft else "4"
    listening, receiving = lab.server.tcp_server(443), lab.server.udp_server(53)
    with pytest.raises(TimeoutError):
        lab.egress.tcp_connect((server, 443), src=(soft, 8999), timeout_s=0.2)
    assert not round_trip(lab.egress.udp_connect((server, 53), src=(soft, 9010), timeout_s=0.2))
    assert not lab.egress.ping(server, src=soft, ident=77, timeout_s=0.2)
    leaks = lab.leaks()
    expected = {f"{name}{family}": 1 for name in ("tcp", "udp", "icmp")}
    assert {name: count for name, count in leaks.sent.items() if count} == expected
    assert {name for name, count in leaks.lost.items() if count} == set(expected)
    assert receiving.wait_for_peers(1) == [(soft, 9010)]
    assert listening.peers == []  # the handshake never ended
    lab.reset_leaks()
    assert lab.leaks().total == 0


@pytest.mark.parametrize("server", [SERVER, SERVER_6])
def test_a_client_that_nobody_rewrites_gets_no_answer(lab: Lab, server: str) -> None:
    lab.server.tcp_server(443)
    with pytest.raises(TimeoutError):
        lab.client.tcp_connect((server, 443), timeout_s=0.2)
    assert lab.leaks().unrewritten == 1


def test_a_plain_snat_rule_gives_clients_the_ports_of_the_slice(lab_factory: LabFactory) -> None:
    lab = lab_factory(clients=3)
    lab.egress.nft(
        "table ip t { chain c { type nat hook postrouting priority 100;"
        f" oifname up0 meta l4proto tcp snat to {SOFT_ADDRESS}:9000-9009; }}\n}}"
    )
    server = lab.server.tcp_server(443)
    sockets = [lab.client.tcp_connect((SERVER, 443), src=(f"10.0.0.{number}", 0)) for number in (2, 3, 4)]
    assert all(map(round_trip, sockets))
    peers = server.wait_for_peers(3)
    assert len(peers) == 3
    assert all(address == SOFT_ADDRESS and 9000 <= port <= 9009 for address, port in peers)


def test_captures_show_what_is_on_the_wire(lab: Lab) -> None:
    lab.server.tcp_server(443)
    with lab.upstream.capture("down0") as capture:
        lab.egress.tcp_connect((SERVER, 443), src=(SOFT_ADDRESS, 9005))
        lab.egress.ping(SERVER_6, src=SOFT_ADDRESS_6, ident=9006)
        seen = capture.wait_for(lambda packet: packet.tuple.protocol == "icmpv6")
    assert seen is not None
    assert seen.tuple.sport == 9006
    assert capture.sources(SOFT_ADDRESS) == [9005]


@pytest.mark.parametrize(("address", "server"), [(CLIENT, SERVER), (CLIENT_6, SERVER_6)])
def test_forwarding_is_on_and_routes_are_complete(lab: Lab, address: str, server: str) -> None:
    with lab.server.capture("eth0") as capture:
        lab.client.ping(server, src=address, ident=5, timeout_s=0.1)
        assert capture.wait_for(lambda packet: str(packet.tuple.src) == address)


def test_several_slices_and_ranges(lab_factory: LabFactory) -> None:
    lab = lab_factory(slices=["198.51.100.10:9000-9009,9100", "198.51.100.11:80", "[2001:db8:100::12]:7000-7001"])
    lab.server.tcp_server(443)
    for source in (("198.51.100.10", 9100), ("198.51.100.11", 80), ("2001:db8:100::12", 7001)):
        assert lab.owns(*source)
        server = SERVER_6 if ":" in source[0] else SERVER
        assert round_trip(lab.egress.tcp_connect((server, 443), src=source))
    with pytest.raises(TimeoutError):
        lab.egress.tcp_connect((SERVER, 443), src=("198.51.100.11", 9000), timeout_s=0.1)
    assert lab.leaks().sent["tcp4"] == 1


def test_two_labs_side_by_side_do_not_meet(lab_factory: LabFactory) -> None:
    one, other = lab_factory(), lab_factory()
    seen_by_one, seen_by_other = one.server.tcp_server(443), other.server.tcp_server(443)
    one.egress.tcp_connect((SERVER, 443), src=(SOFT_ADDRESS, 9000))
    assert len(seen_by_one.wait_for_peers(1)) == 1
    assert seen_by_other.peers == []


def test_leaving_takes_everything_away() -> None:
    with Lab() as lab:
        lab.server.tcp_server(443)
        held = lab.egress.tcp_connect((SERVER, 443))
        child = lab.egress.popen(["sleep", "60"])
        path = lab.config()
    assert lab.name not in namespaces.list_labs()
    assert state.read(lab.name) is None
    assert (held.fileno(), path.exists(), child.poll() is None) == (-1, False, False)


def test_a_failure_inside_takes_everything_away() -> None:
    with pytest.raises(KeyboardInterrupt), Lab() as lab:
        raise KeyboardInterrupt
    assert lab.name not in namespaces.list_labs()


def test_a_lab_that_cannot_be_wired_is_taken_away() -> None:
    lab = Lab(slices=["198.51.100.10:9000-9009", "127.0.0.1:5-1"])  # nft refuses the range
    with pytest.raises(NatctlError, match="nft"):
        lab.__enter__()
    assert lab.name not in namespaces.list_labs()
    assert state.read(lab.name) is None


def test_a_second_lab_of_the_same_name_is_refused_and_the_first_stays(lab: Lab) -> None:
    with pytest.raises(NatctlError, match="of that name already"), Lab(name=lab.name):
        pass
    assert len(namespaces.list_labs()[lab.name]) == 4


def test_what_a_killed_process_leaves_is_found_and_taken_away() -> None:
    script = "import time\nfrom netns_lab import Lab\nwith Lab() as lab:\n print(lab.name, flush=True)\n time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert name not in list_leftovers()
        assert name in list_leftovers(force=True)
        process.send_signal(signal.SIGKILL)
    assert name in list_leftovers()
    take_down(name)
    assert name not in {*namespaces.list_labs(), *state.names()}


def test_processes_in_a_lab_that_is_taken_down_end(lab: Lab) -> None:
    child = lab.egress.popen(["sleep", "60"])
    namespaces.end_processes(namespaces.NAMED_NAMESPACES / lab.egress.name)
    assert child.wait(2) == -signal.SIGTERM


def test_a_lab_can_be_used_by_name(lab: Lab) -> None:
    lab.server.tcp_server(443)
    again = Lab.attached(lab.name)
    assert round_trip(again.egress.tcp_connect((SERVER, 443)))
    again.close()
    assert len(namespaces.list_labs()[lab.name]) == 4


@pytest.mark.parametrize(
    "options", [{"clients": 0}, {"name": "../x"}, {"slices": ["nonsense"]}, {"slices": ["1.2.3.4:a"]}]
)
def test_bad_descriptions_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="expected"):
        Lab(**options)  # type: ignore[arg-type]


def test_natctl_runs_on_the_egress_host(lab: Lab) -> None:
    assert lab.natctl("--version", expect=0).stdout.startswith("natctl")
    with pytest.raises(NatctlError, match="exit code 2, expected 0"):
        lab.natctl("no-such-command", expect=0)


def entered_without_privilege(script: str) -> subprocess.CompletedProcess[str]:
    """Run a Python script as ``./dev test`` and ``natctl lab`` run for an ordinary user."""
    command = [*ORDINARY, sys.executable, "-m", "netns_lab.enter", "--", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if "lab without root" in done.stderr:
        pytest.skip(done.stderr.strip())
    return done


def test_without_capabilities_the_same_lab_is_made_in_namespaces_of_its_own() -> None:
    script = "from netns_lab import Lab\nwith Lab() as lab: print(lab.egress.ping('203.0.113.1'))"
    done = entered_without_privilege(script)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_namespace_of_ones_own_has_loopback() -> None:
    script = (
        "import socket\n"
        "with socket.create_server(('127.0.0.1', 0)) as server:\n"
        "    print(socket.create_connection(server.getsockname()).getpeername()[0])"
    )
    done = entered_without_privilege(script)
    assert (done.stdout, done.stderr) == ("127.0.0.1\n", "")


def test_sockets_time_out_instead_of_hanging(lab: Lab) -> None:
    with pytest.raises((TimeoutError, socket.timeout)):
        lab.egress.tcp_connect((SERVER, 443), src=(SOFT_ADDRESS, 1), timeout_s=0.05)
