"""Claims follow conntrack: a claim is there as long as the entry that holds the tuple, and no longer.

What an entry has left is asked of ``conntrack``, what a claim has left of ``nft``.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from collections.abc import Callable

import pytest
from waiting import wait_until

from bench.coexist.settings import apply, configuration
from netns_lab import Lab, round_trip
from netns_lab.host import Host
from netns_lab.topology import CLIENT, CLIENT_6, SERVER, SERVER_6, SOFT_ADDRESS, SOFT_ADDRESS_6

FAMILIES = pytest.mark.parametrize("family", [4, 6])
ADDRESSES = {4: (CLIENT, SERVER, SOFT_ADDRESS), 6: (CLIENT_6, SERVER_6, SOFT_ADDRESS_6)}
KIND = {4: socket.AF_INET, 6: socket.AF_INET6}
TCP_PORT, UDP_PORT = 443, 53
# All different, so that a claim that takes the time of the wrong state is found out.
TIMEOUTS = {
    "tcp_syn_sent": 200, "tcp_syn_recv": 180, "tcp_established": 4000, "tcp_fin_wait": 160, "tcp_close_wait": 140,
    "tcp_last_ack": 120, "tcp_time_wait": 100, "tcp_close": 80, "tcp_retrans": 2000, "tcp_unack": 300,
    "udp_unreplied": 30, "udp_replied": 20,
}  # fmt: skip
SHORT = {**TIMEOUTS, "tcp_time_wait": 2, "tcp_close": 2, "udp_unreplied": 2, "udp_replied": 3}
# A second is cut off on either side, and a busy machine lets some pass between the two questions. Less than what any
# two times above differ by.
APART_S = 6
# Between the end of a claim and that of its entry.
GONE_WITHIN_S = 2

Wire = tuple[str, str, int, str, int]
_ENTRY = re.compile(
    r"^(?P<protocol>tcp|udp) +\d+ (?P<left>\d+) (?:(?P<state>[A-Z_0-9]+) )?src=\S+ dst=\S+ sport=\d+ dport=\d+ "
    r"(?:\[UNREPLIED\] )?src=(?P<server>\S+) dst=(?P<soft>\S+) sport=(?P<dport>\d+) dport=(?P<sport>\d+)",
    re.MULTILINE,
)


def read_claims(lab: Lab, family: int) -> dict[Wire, int]:
    """Return the seconds that each claim has left."""
    listing = json.loads(lab.egress.run(["nft", "-j", "list", "set", "inet", "natctl", f"claims{family}"]).stdout)
    (found,) = [entry["set"] for entry in listing["nftables"] if "set" in entry]
    elements = [element["elem"] for element in found.get("elem", [])]
    return {tuple(element["val"]["concat"]): element["expires"] for element in elements}


def read_entries(lab: Lab, family: int) -> dict[Wire, tuple[int, str]]:
    """Return the seconds that each entry has left and its TCP state, by the tuple that a socket would want."""
    listing = lab.egress.run(["conntrack", "-L", "-f", f"ipv{family}"]).stdout
    entries = [match.groupdict() for match in _ENTRY.finditer(listing)]
    return {
        (e["protocol"], e["soft"], int(e["sport"]), e["server"], int(e["dport"])): (int(e["left"]), e["state"] or "")
        for e in entries
    }


def agreed_entry(lab: Lab, family: int) -> tuple[Wire, int, str]:
    """Return the only entry; fail unless its claim is the only one, and has as long to live."""
    ((wire, claimed),) = read_claims(lab, family).items()
    ((held, (left, state)),) = read_entries(lab, family).items()
    assert held == wire
    assert abs(claimed - left) <= APART_S, f"claim {claimed} s, entry {left} s, state {state}"
    return wire, left, state


class Step:
    """Checks the claim after each step in the life of a flow."""

    def __init__(self, lab: Lab, family: int) -> None:
        self.lab, self.family = lab, family

    def expect(self, state: str, setting: str) -> Wire:
        """Wait for the entry to be in a state; its claim then has the same time left, that of the setting."""
        wait_until(lambda: [entry[1] for entry in read_entries(self.lab, self.family).values()] == [state])
        wire, left, _ = agreed_entry(self.lab, self.family)
        assert abs(TIMEOUTS[setting] - left) <= APART_S
        return wire


@pytest.fixture
def lab(lab: Lab) -> Lab:
    apply(lab, configuration(lab.slices, coexist="refuse", timeouts=TIMEOUTS))
    return lab


def listening(lab: Lab, family: int) -> socket.socket:
    listener = lab.server.open_socket(socket.SOCK_STREAM, KIND[family])
    listener.bind((ADDRESSES[family][1], TCP_PORT))
    listener.listen()
    return listener


def nat_flow(lab: Lab, family: int) -> tuple[socket.socket, socket.socket]:
    """Return both ends of an established flow of the client."""
    listener = listening(lab, family)
    near = lab.client.tcp_connect((ADDRESSES[family][1], TCP_PORT))
    far, _ = listener.accept()
    near.sendall(b"x")
    assert far.recv(1) == b"x"
    return near, far


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@FAMILIES
@pytest.mark.parametrize("first", ["client", "server"])
def test_a_claim_follows_a_tcp_flow_to_its_orderly_end(lab: Lab, family: int, first: str) -> None:
    near, far = nat_flow(lab, family)
    step = Step(lab, family)
    wire = step.expect("ESTABLISHED", "tcp_established")
    one, other = (near, far) if first == "client" else (far, near)
    one.shutdown(socket.SHUT_WR)
    assert other.recv(1) == b""
    assert step.expect("CLOSE_WAIT", "tcp_close_wait") == wire
    other.close()
    assert step.expect("TIME_WAIT", "tcp_time_wait") == wire


@FAMILIES
def test_a_claim_follows_a_tcp_flow_that_is_reset(lab: Lab, family: int) -> None:
    near, _ = nat_flow(lab, family)
    reset(near)
    Step(lab, family).expect("CLOSE", "tcp_close")


def deafen(host: Host) -> None:
    """Let no more packets of the flow reach a host."""
    rule = f"meta l4proto tcp th sport {TCP_PORT} drop; meta l4proto tcp th dport {TCP_PORT} drop"
    host.nft(f"table inet deaf {{ chain c {{ type filter hook input priority 0; {rule}; }}; }}")


@FAMILIES
def test_a_claim_follows_a_tcp_flow_that_the_server_does_not_answer(lab: Lab, family: int) -> None:
    deafen(lab.server)
    lab.client.tcp_start((ADDRESSES[family][1], TCP_PORT))
    Step(lab, family).expect("SYN_SENT", "tcp_syn_sent")


@FAMILIES
def test_a_claim_follows_a_tcp_flow_whose_client_hears_nothing(lab: Lab, family: int) -> None:
    listening(lab, family)
    deafen(lab.client)
    lab.client.tcp_start((ADDRESSES[family][1], TCP_PORT))
    Step(lab, family).expect("SYN_RECV", "tcp_syn_recv")


def repeat_slowly(host: Host, family: int) -> None:
    """Let a host wait long before it sends again what was not acknowledged, which would change the entry's state."""
    gateway = {4: "10.0.0.1", 6: "2001:db8:10::1"}[family]
    host.sysctl("net.ipv4.tcp_early_retrans", 0)
    host.run(["ip", f"-{family}", "route", "change", "default", "via", gateway, "rto_min", "30s"])


@FAMILIES
def test_a_claim_follows_a_tcp_flow_whose_end_nobody_acknowledges(lab: Lab, family: int) -> None:
    repeat_slowly(lab.client, family)
    near, far = nat_flow(lab, family)
    step = Step(lab, family)
    deafen(lab.server)
    near.sendall(b"x")
    step.expect("ESTABLISHED", "tcp_unack")
    near.shutdown(socket.SHUT_WR)
    step.expect("FIN_WAIT", "tcp_fin_wait")
    lab.server.nft("delete table inet deaf")
    reset(far)
    step.expect("CLOSE", "tcp_close")


@FAMILIES
def test_a_claim_follows_a_tcp_flow_whose_last_packet_is_lost(lab: Lab, family: int) -> None:
    near, far = nat_flow(lab, family)
    step = Step(lab, family)
    near.shutdown(socket.SHUT_WR)
    step.expect("CLOSE_WAIT", "tcp_close_wait")
    deafen(lab.client)
    far.close()
    step.expect("LAST_ACK", "tcp_last_ack")


@FAMILIES
def test_a_claim_ends_with_a_connection_that_the_server_refuses(lab: Lab, family: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        lab.client.tcp_connect((ADDRESSES[family][1], TCP_PORT))
    assert (read_entries(lab, family), read_claims(lab, family)) == ({}, {})


@FAMILIES
def test_a_claim_follows_a_udp_flow(lab: Lab, family: int) -> None:
    step = Step(lab, family)
    near = lab.client.udp_connect((ADDRESSES[family][1], UDP_PORT))
    receiver = lab.server.open_socket(socket.SOCK_DGRAM, KIND[family])
    receiver.bind((ADDRESSES[family][1], UDP_PORT))
    near.send(b"x")
    step.expect("", "udp_unreplied")
    _, peer = receiver.recvfrom(1)
    receiver.sendto(b"y", peer)
    near.send(b"z")
    # Conntrack calls a flow a stream when it goes on for two seconds; before, it gives it the time of unreplied ones.
    time.sleep(2.1)
    receiver.sendto(b"y", peer)
    near.send(b"z")
    step.expect("", "udp_replied")


@FAMILIES
@pytest.mark.parametrize("end", ["time wait", "reset", "udp"])
def test_entry_and_claim_are_gone_at_the_same_time(lab: Lab, family: int, end: str) -> None:
    apply(lab, configuration(lab.slices, coexist="refuse", timeouts=SHORT))
    if end == "udp":
        lab.client.udp_connect((ADDRESSES[family][1], UDP_PORT)).send(b"x")
    else:
        near, far = nat_flow(lab, family)
        far.close() if end == "time wait" else reset(far)
        near.close()
    wait_until(lambda: bool(read_claims(lab, family)))
    wait_until(lambda: not read_claims(lab, family))
    claim_gone = time.monotonic()
    wait_until(lambda: not read_entries(lab, family))
    assert time.monotonic() - claim_gone < GONE_WITHIN_S


@FAMILIES
def test_a_claimed_tuple_is_refused_at_once_and_another_destination_works(lab: Lab, family: int) -> None:
    nat_flow(lab, family)
    ((_, soft, port, server, _),) = read_claims(lab, family)
    begin = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        lab.egress.tcp_connect((server, TCP_PORT), src=(soft, port))
    assert time.monotonic() - begin < 0.5
    lab.server.tcp_server(444)
    assert round_trip(lab.egress.tcp_connect((server, 444), src=(soft, port)))
    assert lab.leaks().total == 0


@FAMILIES
def test_a_datagram_to_a_claimed_tuple_fails_at_once(lab: Lab, family: int) -> None:
    _, server, soft = ADDRESSES[family]
    lab.server.udp_server(UDP_PORT)
    lab.server.udp_server(54)
    assert round_trip(lab.client.udp_connect((server, UDP_PORT)))
    ((_, _, port, _, _),) = read_claims(lab, family)
    local = lab.egress.udp_connect((server, UDP_PORT), src=(soft, port))
    with pytest.raises(PermissionError):
        local.send(b"x")
    local.close()
    assert round_trip(lab.egress.udp_connect((server, 54), src=(soft, port)))


@FAMILIES
def test_a_claim_whose_entry_was_deleted_by_hand_refuses_until_its_time_is_up(lab: Lab, family: int) -> None:
    nat_flow(lab, family)
    ((_, soft, port, server, _),) = read_claims(lab, family)
    lab.egress.run(["conntrack", "-F"])
    with pytest.raises(ConnectionRefusedError):
        lab.egress.tcp_connect((server, TCP_PORT), src=(soft, port))


@FAMILIES
def test_without_its_claim_a_tuple_is_confined(lab: Lab, family: int) -> None:
    listener = listening(lab, family)
    server = ADDRESSES[family][1]
    lab.client.tcp_connect((server, TCP_PORT))
    far, _ = listener.accept()  # held: its end would claim the tuple anew
    ((_, soft, port, _, _),) = read_claims(lab, family)
    lab.egress.run(["nft", "flush", "set", "inet", "natctl", f"claims{family}"])
    lab.egress.tcp_connect((server, TCP_PORT), src=(soft, port))
    _, seen_by_server = listener.accept()
    assert seen_by_server[:2] != (soft, port)
    assert lab.owns(soft, seen_by_server[1])
    assert lab.leaks().total == 0
    far.close()


@FAMILIES
def test_a_local_flow_that_was_moved_has_a_claim_too(lab: Lab, family: int) -> None:
    listener = listening(lab, family)
    server = ADDRESSES[family][1]
    lab.client.tcp_connect((server, TCP_PORT))
    far, _ = listener.accept()  # held: its end would claim the tuple anew
    ((_, soft, port, _, _),) = read_claims(lab, family)
    lab.egress.run(["nft", "flush", "set", "inet", "natctl", f"claims{family}"])
    lab.egress.tcp_connect((server, TCP_PORT), src=(soft, port))
    _, moved = listener.accept()
    assert ("tcp", soft, moved[1], server, TCP_PORT) in read_claims(lab, family)
    far.close()


@pytest.mark.parametrize("priority", [-150, 50, 250])
def test_claims_follow_rewriting_whatever_its_priority(lab_factory: Callable[..., Lab], priority: int) -> None:
    lab = lab_factory()
    text = configuration(lab.slices, coexist="refuse")
    apply(lab, text.replace("[controller]", f"[controller]\nsrcnat_priority = {priority}"))
    nat_flow(lab, 4)
    ((_, soft, port, server, _),) = read_claims(lab, 4)
    with pytest.raises(ConnectionRefusedError):
        lab.egress.tcp_connect((server, TCP_PORT), src=(soft, port))
