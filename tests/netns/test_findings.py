"""Every kind of finding made to happen in a real kernel and reported, and its near miss, which must not be."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from watching import placeholder

from nat_rewriter.kernel.conntrack import delete_flow, insert_flow
from nat_rewriter.model.tuples import FlowTuple
from netns_lab import Lab
from netns_lab.host import round_trip

SERVER, SERVER6 = "203.0.113.1", "2001:db8:203::1"
SOFT, SOFT6 = "198.51.100.10", "2001:db8:100::10"
CLIENT, CLIENT6 = "10.0.0.2", "2001:db8:10::2"
WEB = (SERVER, 443)

TCP_REPAIR = 19

Finding = dict[str, Any]
Configured = Callable[..., Path]


@pytest.fixture
def configured(lab: Lab) -> Configured:
    """Apply a configuration and return its path; by default nothing stands in the way of a collision."""
    lab.server.tcp_server(443)
    lab.server.udp_server(53)

    def apply(*, coexist: str = "off", guard: str = "off", replaced: tuple[str, str] | None = None) -> Path:
        path = lab.config(coexist=coexist, guard=guard)
        if replaced:
            path.write_text(path.read_text().replace(*replaced))
        lab.natctl("apply", "--config", path, expect=0)
        return path

    return apply


def check(lab: Lab, config: Path, *options: str) -> list[Finding]:
    outcome = lab.natctl("check", "--json", "--config", config, *options)
    found = outcome.lines()
    assert outcome.exit_code == (3 if found else 0), outcome.stderr
    return found


def kinds(lab: Lab, config: Path, *options: str) -> list[str]:
    return [finding["kind"] for finding in check(lab, config, *options)]


def hold(lab: Lab, port: int, dst: tuple[str, int] = WEB) -> socket.socket:
    """A NAT flow that holds a port: a client's port in the slice is kept while it is free."""
    return lab.client.tcp_connect(dst, src=(CLIENT, port))


# port-leaked and port-remapped


def test_ten_nat_flows_and_one_socket_too_many(lab: Lab, configured: Configured) -> None:
    """The story of the project: the finding agrees with what conntrack and ss say."""
    config = configured()
    clients = [lab.client.tcp_connect(WEB) for _ in range(10)]
    victim = lab.egress.tcp_start(WEB, src=(SOFT, 9003))
    found = check(lab, config)
    (leak,) = [finding for finding in found if finding["kind"] == "port-leaked"]
    assert [finding["kind"] for finding in found if finding != leak] == ["slice-exhausted"]
    table = lab.egress.run(["conntrack", "-L", "-o", "id"]).stdout
    wire = re.search(rf"src={SOFT} dst={SERVER} sport=9003 dport=443.* dport=(\d+)", table)
    holder = re.search(rf"src={CLIENT} .*sport=(\d+) dport=443 .*dst={SOFT} sport=443 dport=9003 .*\bid=(\d+)", table)
    assert wire
    assert holder
    assert leak["tuple"] == {"src": SOFT, "sport": 9003, "dst": SERVER, "dport": 443}
    assert leak["wire_sport"] == int(wire[1])
    assert not lab.owns(SOFT, leak["wire_sport"])
    assert leak["holder"] == {
        "type": "nat-flow", "src": CLIENT, "sport": int(holder[1]), "id": int(holder[2]),
    }  # fmt: skip
    assert leak["holder"]["sport"] in {sock.getsockname()[1] for sock in clients}
    listed = lab.egress.run(["ss", "-tnpe"]).stdout
    shown = re.search(rf'{SOFT}:9003 +{SERVER}:443 .*\(\("([^"]+)",pid=(\d+),.* ino:(\d+)', listed)
    assert shown
    assert leak["victim"] == {"type": "socket", "pid": os.getpid(), "command": shown[1], "inode": int(shown[3])}
    assert int(shown[2]) == os.getpid()
    assert victim.getsockname() == (SOFT, 9003)


def test_confined_port_is_remapped_and_works(lab: Lab, configured: Configured) -> None:
    config = configured(coexist="confine")
    holder = hold(lab, 9003)
    victim = lab.egress.tcp_connect(WEB, src=(SOFT, 9003))
    assert round_trip(victim)
    (finding,) = check(lab, config)
    assert (finding["kind"], finding["severity"]) == ("port-remapped", "warning")
    assert lab.owns(SOFT, finding["wire_sport"])
    assert finding["wire_sport"] != 9003
    assert finding["holder"]["sport"] == holder.getsockname()[1]
    assert finding["victim"]["pid"] == os.getpid()


def test_leaks_of_udp_icmp_and_ipv6(lab: Lab, configured: Configured) -> None:
    config = configured()
    assert round_trip(lab.client.udp_connect((SERVER, 53), src=(CLIENT, 9001)))
    udp = lab.egress.udp_connect((SERVER, 53), src=(SOFT, 9001))
    udp.send(b"lost")
    assert lab.client.ping(SERVER, ident=9002)
    assert not lab.egress.ping(SERVER, src=SOFT, ident=9002, timeout_s=0.1)
    held = lab.client.tcp_connect((SERVER6, 443), src=(CLIENT6, 9003))
    six = lab.egress.tcp_start((SERVER6, 443), src=(SOFT6, 9003))
    found = {finding["protocol"]: finding for finding in check(lab, config)}
    assert {finding["kind"] for finding in found.values()} == {"port-leaked"}
    assert found["udp"]["victim"]["inode"] == os.fstat(udp.fileno()).st_ino
    assert found["icmp"]["tuple"] == {"src": SOFT, "dst": SERVER, "icmp_id": 9002}
    assert found["icmp"]["holder"]["sport"] == 9002
    assert found["tcp"]["tuple"]["src"] == SOFT6
    assert found["tcp"]["holder"]["src"] == CLIENT6
    assert found["tcp"]["victim"]["inode"] == os.fstat(six.fileno()).st_ino
    assert held.getsockname()[1] == 9003
    # Asked for these alone, the kernel is asked for less.
    alone = check(lab, config, "--only", "port-leaked,port-remapped")
    assert [without_time(one) for one in alone] == [without_time(one) for one in found.values()]


def without_time(finding: Finding) -> Finding:
    return {name: value for name, value in finding.items() if name != "time"}


def test_socket_that_was_first_keeps_its_port(lab: Lab, configured: Configured) -> None:
    config = configured()
    first = lab.egress.tcp_connect(WEB, src=(SOFT, 9003))
    second = hold(lab, 9003)
    assert round_trip(first)
    assert round_trip(second)
    assert kinds(lab, config) == []


def test_same_port_to_another_server_is_no_collision(lab: Lab, configured: Configured) -> None:
    config = configured()
    held = hold(lab, 9003, ("203.0.113.2", 443))
    assert round_trip(lab.egress.tcp_connect(WEB, src=(SOFT, 9003)))
    assert kinds(lab, config) == []
    assert round_trip(held)


def test_only_and_quiet_and_lines(lab: Lab, configured: Configured) -> None:
    config = configured()
    kept = [lab.client.tcp_connect(WEB) for _ in range(10)]
    victim = lab.egress.tcp_start(WEB, src=(SOFT, 9003))
    assert kinds(lab, config, "--only", "port-leaked,port-remapped") == ["port-leaked"]
    assert kinds(lab, config, "--only", "ruleset-drift") == []
    leak = lab.natctl("check", "--config", config, expect=3).stdout.splitlines()[0]
    assert re.match(
        rf"critical port-leaked ams-1 tcp {SOFT}:9003 -> {SERVER}:443 wire \d+ victim \S+\[{os.getpid()}\] "
        rf"holder {CLIENT}:\d+: Set coexist",
        leak,
    )
    assert "expected some of port-leaked" in lab.natctl("check", "--only", "leaks", expect=2).stderr
    assert len(kept) == 10
    victim.close()


# tuple-shared and socket-untracked


def test_placeholder_is_untracked_until_a_nat_flow_takes_its_tuple(lab: Lab, configured: Configured) -> None:
    config = configured()
    waiting = placeholder(lab, (SOFT, 9004), WEB)
    (finding,) = check(lab, config)
    assert (finding["kind"], finding["victim"]["inode"]) == ("socket-untracked", os.fstat(waiting.fileno()).st_ino)
    held = hold(lab, 9004)
    (finding,) = check(lab, config)
    assert finding["kind"] == "tuple-shared"
    assert finding["holder"]["sport"] == held.getsockname()[1]
    assert finding["tuple"] == {"src": SOFT, "sport": 9004, "dst": SERVER, "dport": 443}
    # Once it sends, the same collision is a leak, and is told as that alone.
    waiting.setblocking(False)
    waiting.send(b"hello")
    assert kinds(lab, config) == ["port-leaked"]


def test_connected_and_accepted_and_idle_sockets_are_tracked(lab: Lab, configured: Configured) -> None:
    config = configured()
    listener = lab.egress.open_socket(socket.SOCK_STREAM)
    listener.bind((SOFT, 9001))
    listener.listen()
    inbound = lab.server.tcp_connect((SOFT, 9001))
    accepted, _ = listener.accept()
    outbound = lab.egress.tcp_connect(WEB, src=(SOFT, 9002))
    assert kinds(lab, config) == []
    for sock in (inbound, accepted, outbound):
        sock.close()


def test_reserved_placeholder_is_tracked(lab: Lab, configured: Configured) -> None:
    config = configured()
    placeholder(lab, (SOFT, 9004), WEB)
    with lab.egress.enter():
        insert_flow(FlowTuple("tcp", ip_address(SOFT), 9004, ip_address(SERVER), 443), 60)
    assert kinds(lab, config) == []


# slice-exhausted and slice-pressure


def test_slice_runs_out_towards_one_server(lab: Lab, configured: Configured) -> None:
    config = configured(coexist="confine")
    flows = [lab.client.tcp_connect(WEB) for _ in range(8)]
    flows += [lab.client.tcp_connect(("203.0.113.2", 443)) for _ in range(8)]
    assert kinds(lab, config) == []
    assert kinds(lab, config, "--pressure", "0.7") == ["slice-pressure", "slice-pressure"]
    flows.append(lab.client.tcp_connect(WEB))
    (finding,) = check(lab, config)
    assert (finding["kind"], finding["used"], finding["capacity"]) == ("slice-pressure", 9, 10)
    flows.append(lab.client.tcp_connect(WEB))
    (finding,) = check(lab, config)
    assert (finding["kind"], finding["destination"]) == ("slice-exhausted", f"{SERVER}:443")
    with pytest.raises(TimeoutError):
        lab.client.tcp_connect(WEB, timeout_s=0.3)


def test_echo_ids_run_out_too(lab: Lab, configured: Configured) -> None:
    config = configured()
    assert all(lab.client.ping(SERVER, ident=ident) for ident in range(500, 510))
    (finding,) = check(lab, config)
    assert (finding["kind"], finding["protocol"], finding["destination"]) == ("slice-exhausted", "icmp", SERVER)


# entries that outlived what they were made for


def test_entry_of_a_vanished_socket_is_orphaned(lab: Lab, configured: Configured) -> None:
    config = configured()
    alive = lab.egress.tcp_connect(WEB, src=(SOFT, 9001))
    ended = lab.egress.tcp_connect(WEB, src=(SOFT, 9002))
    ended.close()
    silent = lab.egress.tcp_connect(WEB, src=(SOFT, 9003))
    assert kinds(lab, config) == []
    silent.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    silent.close()  # in repair mode nothing is sent: conntrack believes in the connection for days
    (finding,) = check(lab, config)
    assert (finding["kind"], finding["severity"], finding["tuple"]["sport"]) == ("entry-orphaned", "notice", 9003)
    assert round_trip(alive)


def test_unanswered_entry_is_stuck_once_its_holder_is_gone(lab: Lab, configured: Configured) -> None:
    config = configured()
    assert round_trip(lab.client.udp_connect((SERVER, 53), src=(CLIENT, 9001)))
    victim = lab.egress.udp_connect((SERVER, 53), src=(SOFT, 9001), timeout_s=0.2)
    assert not round_trip(victim)
    assert kinds(lab, config) == ["port-leaked"]
    with lab.egress.enter():
        assert delete_flow(FlowTuple("udp", ip_address(CLIENT), 9001, ip_address(SERVER), 53))
    assert not round_trip(victim)  # the port is free, but each try keeps the entry that rewrites it
    found = {finding["kind"]: finding for finding in check(lab, config)}
    assert set(found) == {"port-leaked", "entry-stuck"}
    remedy = re.search(r"conntrack -D [^:]+", found["entry-stuck"]["remedy"])
    assert remedy
    lab.egress.run(remedy[0].split())
    assert round_trip(victim)
    assert kinds(lab, config) == []


def test_flow_on_a_withdrawn_slice_is_stranded(lab: Lab, configured: Configured) -> None:
    configured()
    stays, goes = hold(lab, 9001), hold(lab, 9007)
    config = configured(replaced=('"9000-9009"', '"9000-9004"'))
    (finding,) = check(lab, config)
    assert (finding["kind"], finding["wire_sport"], finding["holder"]["src"]) == ("flow-stranded", 9007, CLIENT)
    assert round_trip(stays)
    assert round_trip(goes)


# sockets that stand where they should not


def test_placeholder_takes_the_replies_of_a_forwarded_flow(lab: Lab, configured: Configured) -> None:
    """A router behind the egress host uses the soft-unicast address itself; early demux finds the placeholder."""
    config = configured()
    for command in (
        f"ip rule add pref 90 iif up0 to {SOFT} dport 9000-9009 ipproto tcp lookup 78; "
        f"ip route add {SOFT} via {CLIENT} dev fish0 table 78; "
        f"ip rule add pref 200 lookup local; ip rule del pref 0",
        "for each in /proc/sys/net/ipv4/conf/*/accept_local; do echo 1 >$each; done",
    ):
        lab.egress.run(["sh", "-ec", command])
    lab.client.run(["ip", "address", "add", f"{SOFT}/32", "dev", "lo"])
    forwarded = lab.client.tcp_connect(WEB, src=(SOFT, 9001))
    assert round_trip(forwarded)
    placeholder(lab, (SOFT, 9002), WEB)
    captured = lab.client.tcp_start(WEB, src=(SOFT, 9002))
    time.sleep(0.2)
    found = [finding for finding in check(lab, config) if finding["kind"] == "reply-captured"]
    assert [finding["tuple"]["sport"] for finding in found] == [9002]
    lab.egress.sysctl("net.ipv4.tcp_early_demux", 0)
    assert "reply-captured" not in kinds(lab, config)
    captured.close()


def test_socket_on_a_port_for_rewriting(lab: Lab, configured: Configured) -> None:
    ports = ('ports = ["9000-9009"]', 'ports = ["9000-9009"]\nsocket_ports = ["9008-9009"]')
    config = configured(coexist="split", replaced=ports)
    allowed, foreign = (lab.egress.open_socket(socket.SOCK_STREAM) for _ in range(2))
    allowed.bind((SOFT, 9008))
    allowed.listen()
    assert kinds(lab, config) == []
    foreign.bind(("0.0.0.0", 9001))
    foreign.listen()
    (finding,) = check(lab, config)
    assert (finding["kind"], finding["bound"]) == ("foreign-bind", "0.0.0.0:9001")
    assert finding["holder"]["pid"] == os.getpid()


# the host as a whole


def test_ephemeral_ports_over_a_slice(lab: Lab, configured: Configured) -> None:
    config = configured()
    lab.egress.sysctl("net.ipv4.ip_local_port_range", "9005 20000")
    found = check(lab, config)
    assert [(finding["kind"], finding["slice"]) for finding in found] == [
        ("ephemeral-overlap", "ams-1"), ("ephemeral-overlap", "ams-2"),
    ]  # fmt: skip
    assert found[0]["ports"] == ["9005-9009"]
    lab.egress.sysctl("net.ipv4.ip_local_reserved_ports", "9005-9009")
    assert kinds(lab, config) == []


def test_changed_table_has_drifted(lab: Lab, configured: Configured) -> None:
    config = configured()
    lab.egress.nft("table inet another { chain c { type filter hook input priority 0; accept; }\n }\n")
    assert kinds(lab, config) == []
    lab.egress.nft("add chain inet natctl intruder\n")
    (finding,) = check(lab, config)
    assert (finding["kind"], finding["severity"]) == ("ruleset-drift", "critical")
    assert any("intruder" in line for line in finding["differences"])
    command = [sys.executable, "-m", "nat_rewriter", "check", "--netns", lab.egress.name, "--config", str(config)]
    from_outside = subprocess.run(command, capture_output=True, text=True, check=False)
    assert from_outside.returncode == 3
    assert from_outside.stdout.startswith("critical ruleset-drift: ")
    lab.natctl("apply", "--config", config, expect=0)
    assert kinds(lab, config) == []
    lab.egress.run(["nft", "delete", "table", "inet", "natctl"])
    assert kinds(lab, config) == ["ruleset-drift"]


def test_no_configuration_is_an_error(lab: Lab, tmp_path: Path) -> None:
    outcome = lab.natctl("check", "--config", tmp_path / "missing.toml", expect=2)
    assert "missing.toml" in outcome.stderr
    assert not outcome.stdout
