"""``natctl route``: replies that early demux would give to a socket reach the tunnel, and nobody else's are touched."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest
from routing import ANSWERS, SERVERS, SOFT, Router, placeholder, snapshot, works

from nat_rewriter.kernel.sysctls import read_sysctl
from netns_lab import Lab
from netns_lab.placeholders import KINDS
from netns_lab.tunnel import Tunnel
from netns_lab.tunnel_service import TUN

pytestmark = pytest.mark.skipif(not os.access(TUN, os.R_OK | os.W_OK), reason=f"needs {TUN}")
SETTINGS = ("net.ipv4.tcp_early_demux", "net.ipv4.udp_early_demux")


@pytest.fixture(autouse=True)
def _own_state(state: Path) -> None:
    """Keep what was changed for this test alone."""


@pytest.fixture
def tunnel(lab: Lab) -> Tunnel:
    lab.server.tcp_server(443)
    lab.server.udp_server(53)
    return Tunnel(lab.egress)


@pytest.fixture
def router(lab: Lab) -> Router:
    return Router(lab)


def ends(family: int, port: int) -> tuple[tuple[str, int], tuple[str, int]]:
    return (SOFT[family], port), (SERVERS[family], 443)


FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


def received(sock: socket.socket, wanted: int) -> int:
    """Receive so many bytes, or fewer where no more come in time."""
    count = 0
    while count < wanted and (part := sock.recv(wanted)):
        count += len(part)
    return count


def handed_to_tunnel(lab: Lab) -> int:
    """Return how many packets the tunnel's device was given."""
    (device,) = json.loads(lab.egress.run(["ip", "-s", "-j", "link", "show", "soft0"]).stdout)
    return int(device["stats64"]["tx"]["packets"])


def settings(lab: Lab) -> list[str | None]:
    with lab.egress.enter():
        return [read_sysctl(name) for name in SETTINGS]


# early demux


def test_nothing_gets_through_without_routes(lab: Lab, tunnel: Tunnel) -> None:
    assert not tunnel.open(*ends(4, 9001), timeout_s=0.5).works
    assert not tunnel.open(*ends(6, 9001), timeout_s=0.5).works


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_a_placeholder_takes_the_replies_where_no_answer_is_in_place(
    kind: str, family: int, lab: Lab, tunnel: Tunnel, router: Router
) -> None:
    router.apply("off")
    assert tunnel.open(*ends(family, 9001)).works
    placeholder(lab, kind, *ends(family, 9002))
    assert tunnel.open(*ends(family, 9002), timeout_s=0.7).error == "timed out"
    assert "reply-captured" in router.findings()
    assert router.show()["captured"][f"ipv{family}"] > 0
    text = router.lines()
    assert f"replies did not get through: a socket has their tuple (IPv{family})" in text
    # The near miss: a tuple that nobody has goes through, beside the one that is captured.
    assert tunnel.open(*ends(family, 9003)).works


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_each_answer_lets_the_replies_through(
    answer: str, kind: str, family: int, lab: Lab, tunnel: Tunnel, router: Router
) -> None:
    router.apply(answer)
    placeholder(lab, kind, *ends(family, 9002), device="lo" if answer == "device" else "")
    assert tunnel.open(*ends(family, 9002)).works
    assert tunnel.talk(*ends(family, 9002)).works
    assert settings(lab) == (["0", "0"] if answer == "sysctl" else ["1", "1"])
    assert "reply-captured" not in router.findings()
    assert not any(router.show()["captured"].values())


@pytest.mark.parametrize("answer", ["ingress", "sysctl"])
def test_the_finding_goes_when_an_answer_comes(answer: str, lab: Lab, tunnel: Tunnel, router: Router) -> None:
    router.apply("off")
    placeholder(lab, "fast-open", *ends(4, 9002))
    assert not tunnel.open(*ends(4, 9002), timeout_s=0.5).works
    assert "reply-captured" in router.findings()
    router.apply(answer)
    assert "reply-captured" not in router.findings()  # although the entry is the same
    tunnel.reset(*ends(4, 9002))
    assert tunnel.open(*ends(4, 9002)).works
    tunnel.reset(*ends(4, 9002))
    router.remove()
    router.apply("off")
    assert not tunnel.open(*ends(4, 9002), timeout_s=0.5).works
    assert "reply-captured" in router.findings()


@pytest.mark.parametrize("answer", ["ingress", "sysctl"])
@pytest.mark.parametrize("family", [4, 6])
def test_a_connected_udp_socket_is_passed_as_well(
    family: int, answer: str, lab: Lab, tunnel: Tunnel, router: Router
) -> None:
    src, dst = (SOFT[family], 9002), (SERVERS[family], 53)
    lab.egress.udp_connect(dst, src=src)
    router.apply("off")
    assert not tunnel.open(src, dst, "udp", timeout_s=0.5).works
    router.apply(answer)
    assert tunnel.open(src, dst, "udp").works


# ordinary sockets


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("answer", [*ANSWERS, "off"])
def test_replies_of_ordinary_sockets_are_left_alone(
    answer: str, family: int, lab: Lab, tunnel: Tunnel, router: Router
) -> None:
    """The same slice, the same server, while the tunnel talks: counted by natctl, and by a table of our own."""
    router.apply(answer)
    assert tunnel.open(*ends(family, 9001)).works
    word = {4: "ip", 6: "ip6"}[family]
    rule = f"iifname up0 {word} daddr {SOFT[family]} counter"
    lab.egress.nft(f"table inet count {{ chain c {{ type filter hook input priority 0; {rule}; }}; }}")
    before = router.show()["packets"]
    for port in (9005, 9006, 9007):
        assert works(lab, port, family)
    after = router.show()["packets"]
    listing = lab.egress.run(["nft", "list", "table", "inet", "count"]).stdout
    delivered = int(listing.partition("counter packets ")[2].split()[0])
    assert after[f"passed{family}"] - before[f"passed{family}"] == delivered >= 6
    assert after[f"replies{family}"] == before[f"replies{family}"]
    assert tunnel.talk(*ends(family, 9001)).works


def test_ports_outside_of_the_slices_are_not_looked_at(lab: Lab, tunnel: Tunnel, router: Router) -> None:
    router.apply()
    assert not tunnel.open(*ends(4, 8999), timeout_s=0.4).works
    assert router.show()["packets"]["sent4"] == 0


def test_sockets_that_are_in_the_way_are_told(lab: Lab, tunnel: Tunnel, router: Router) -> None:
    router.apply("device")
    placeholder(lab, "fast-open", *ends(4, 9002), device="lo")
    placeholder(lab, "fast-open", *ends(4, 9003))
    assert router.show()["sockets"] == {"bound_to_device": 1, "bound_to_none": 1}
    assert "1 sockets on ports of the slices are bound to no device" in router.lines()


@pytest.mark.parametrize("answer", ["ingress", "sysctl"])
@pytest.mark.parametrize("family", [4, 6])
def test_errors_about_packets_of_the_tunnel(family: int, answer: str, lab: Lab, tunnel: Tunnel, router: Router) -> None:
    router.apply(answer)
    closed = (SERVERS[family], 54)
    before = handed_to_tunnel(lab)
    assert not tunnel.open((SOFT[family], 9001), closed, "udp", timeout_s=0.4).works
    packets = router.show()["packets"]
    assert (packets[f"replies{family}"] > 0, packets[f"passed{family}"]) == (True, 0)
    assert handed_to_tunnel(lab) > before


@pytest.mark.parametrize("family", [4, 6])
def test_errors_about_packets_of_ordinary_sockets_stay_theirs(
    family: int, lab: Lab, tunnel: Tunnel, router: Router
) -> None:
    router.apply()
    assert tunnel.open(*ends(family, 9001)).works
    before = router.show()["packets"][f"replies{family}"]
    with lab.egress.open_socket(socket.SOCK_DGRAM, FAMILY[family]) as sock:
        sock.bind((SOFT[family], 9002))
        sock.connect((SERVERS[family], 54))
        sock.settimeout(5)
        sock.send(b"natctl")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(1)
    assert router.show()["packets"][f"replies{family}"] == before


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("family", [4, 6])
def test_all_fragments_of_a_reply_get_to_the_tunnel(
    family: int, answer: str, lab: Lab, tunnel: Tunnel, router: Router
) -> None:
    router.apply(answer)
    lab.upstream.nft("delete table inet upstream")  # which lets through what has a port of a slice
    with lab.server.open_socket(socket.SOCK_DGRAM, FAMILY[family]) as server:
        server.bind((SERVERS[family], 5300))
        assert not tunnel.open((SOFT[family], 9001), (SERVERS[family], 5300), "udp", timeout_s=0.4).works
        before = router.show()["packets"]
        server.sendto(b"n" * 4000, (SOFT[family], 9001))
        server.sendto(b"n" * 4000, (SOFT[family], 9002))  # of nobody's tuple

    def counted() -> tuple[int, ...]:
        now = router.show()["packets"]
        return tuple(now[name] - before[name] for name in (f"replies{family}", f"passed{family}"))

    # Conntrack puts fragments together before they are counted.
    pieces = 3 if answer == "ingress" else 1
    deadline = time.monotonic() + 10
    while counted() != (pieces, pieces) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert counted() == (pieces, pieces)


# paths and devices


@pytest.mark.parametrize(("all_", "one"), [("1", "0"), ("0", "1"), ("2", "0"), ("0", "0")])
@pytest.mark.parametrize("answer", ["ingress", "sysctl"])
def test_a_strict_reverse_path_filter_stays(
    answer: str, all_: str, one: str, lab: Lab, tunnel: Tunnel, router: Router
) -> None:
    lab.egress.sysctl("net.ipv4.conf.all.rp_filter", all_)
    for device in ("soft0", "up0"):
        lab.egress.sysctl(f"net.ipv4.conf.{device}.rp_filter", one)
    router.apply(answer)
    assert tunnel.open(*ends(4, 9001)).works


def test_forwarding_is_switched_on_where_it_is_off(lab: Lab, tunnel: Tunnel, router: Router) -> None:
    lab.egress.sysctl("net.ipv4.ip_forward", 0)
    lab.egress.sysctl("net.ipv6.conf.all.forwarding", 0)
    before = snapshot(lab)
    router.apply("sysctl")
    assert tunnel.open(*ends(4, 9001)).works
    assert tunnel.open(*ends(6, 9001)).works
    router.remove()
    assert snapshot(lab) == before


@pytest.mark.parametrize("answer", ["ingress", "sysctl", "off"])
def test_a_router_behind_an_ethernet_device_can_be_the_tunnel(answer: str, lab: Lab, router: Router) -> None:
    """The client has the soft-unicast address itself, and its packets are forwarded un-rewritten."""
    lab.server.tcp_server(443)
    router.apply(answer, tunnel="fish0", via=["10.0.0.2", "2001:db8:10::2"])
    for family in (4, 6):
        lab.client.run(["ip", "address", "add", f"{SOFT[family]}/{32 if family == 4 else 128}", "dev", "lo", "nodad"])
        placeholder(lab, "fast-open", *ends(family, 9002))
        free = lab.client.tcp_connect((SERVERS[family], 443), src=(SOFT[family], 9001))
        free.sendall(b"x" * 50_000)
        assert received(free, 50_000) == 50_000
        if answer == "off":
            with pytest.raises(TimeoutError):
                lab.client.tcp_connect((SERVERS[family], 443), src=(SOFT[family], 9002), timeout_s=0.5)
        else:
            lab.client.tcp_connect((SERVERS[family], 443), src=(SOFT[family], 9002))


def test_a_tunnel_that_comes_back_needs_another_apply(lab: Lab, tunnel: Tunnel, router: Router) -> None:
    router.apply()
    tunnel.close()
    assert "missing: there is no device soft0" in router.lines()
    again = Tunnel(lab.egress)
    assert router.show()["state"] == "incomplete"
    router.apply()
    assert router.show()["state"] == "in place"
    placeholder(lab, "tcp-repair", *ends(4, 9002))
    assert again.open(*ends(4, 9002)).works


def test_tuples_stay_known_when_the_table_is_replaced(lab: Lab, tunnel: Tunnel, router: Router) -> None:
    router.apply()
    placeholder(lab, "fast-open", *ends(4, 9002))
    assert tunnel.open(*ends(4, 9002)).works
    router.apply(idle=600)
    assert router.show()["tuples"] == {"tuples4": 1, "tuples6": 0}
    assert tunnel.talk(*ends(4, 9002)).works


def test_marks_of_others_are_left_alone(lab: Lab, tunnel: Tunnel, router: Router) -> None:
    rule = "iifname soft0 meta mark & 0x00ffffff == 0x00000042 counter"
    lab.egress.nft(
        "table inet marks {\n"
        "chain before { type filter hook prerouting priority -180; meta mark set meta mark | 0x42; }\n"
        f"chain after {{ type filter hook forward priority 0; {rule}; }}\n}}"
    )
    router.apply("sysctl")
    assert tunnel.open(*ends(4, 9001)).works
    listing = lab.egress.run(["nft", "list", "chain", "inet", "marks", "after"]).stdout
    assert int(listing.partition("counter packets ")[2].split()[0]) == router.show()["packets"]["sent4"] > 0
