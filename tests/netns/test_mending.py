"""--heal and --abort on a real kernel: the one entry, socket or table that is named is touched, and nothing else."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import pytest
from operating import unordered
from watching import Line, Watching, placeholder, wait_looking

from nat_rewriter.kernel.conntrack import delete_flow
from nat_rewriter.model.tuples import FlowTuple
from netns_lab import Lab
from netns_lab.host import round_trip

SERVER, SOFT, CLIENT = "203.0.113.1", "198.51.100.10", "10.0.0.2"
WEB, DNS = (SERVER, 443), (SERVER, 53)


class Everything(NamedTuple):
    """All that natctl could touch on a host: entries by id and tuples, sockets, and the ruleset."""

    entries: set[str]
    sockets: set[str]
    ruleset: str


def everything(lab: Lab) -> Everything:
    table = lab.egress.run(["conntrack", "-L", "-o", "id"]).stdout
    entries = {re.sub(r"^(\S+ +\d+) \d+ ", r"\1 ", line) for line in table.splitlines()}
    sockets = set(lab.egress.run(["ss", "-tuanHe"]).stdout.splitlines())
    ruleset = lab.egress.run(["nft", "-s", "list", "ruleset"]).stdout
    return Everything(entries, {re.sub(r" timer:\S+", "", line) for line in sockets}, ruleset)


@pytest.fixture
def config(lab: Lab, state: Path) -> Path:
    lab.server.tcp_server(443)
    lab.server.udp_server(53)
    path = lab.config(coexist="off", guard="off")
    lab.natctl("apply", "--config", path, expect=0)
    return path


@pytest.fixture
def bystanders(lab: Lab, config: Path) -> list[socket.socket]:
    """Flows and sockets of every kind that have nothing to do with what is mended."""
    told = [lab.client.tcp_connect(WEB, src=(CLIENT, 9006)), lab.egress.tcp_connect(WEB, src=(SOFT, 9007))]
    told += [lab.client.udp_connect(DNS, src=(CLIENT, 9006)), lab.egress.udp_connect(DNS, src=(SOFT, 9007))]
    assert all(round_trip(sock) for sock in told)
    listener = lab.egress.open_socket(socket.SOCK_STREAM)
    listener.bind((SOFT, 9008))
    listener.listen()
    return [*told, listener]


def mend(lab: Lab, config: Path, *options: str) -> list[Line]:
    """The actions of one check."""
    outcome = lab.natctl("check", "--json", "--config", config, *options)
    assert outcome.exit_code in (0, 3), outcome.stderr
    return [line for line in outcome.lines() if "action" in line]


def make_stuck(lab: Lab) -> socket.socket:
    """A socket whose entry keeps rewriting it although the holder of its port is gone."""
    assert round_trip(lab.client.udp_connect(DNS, src=(CLIENT, 9001)))
    victim = lab.egress.udp_connect(DNS, src=(SOFT, 9001), timeout_s=0.2)
    assert not round_trip(victim)
    with lab.egress.enter():
        assert delete_flow(FlowTuple("udp", ip_address(CLIENT), 9001, ip_address(SERVER), 53))
    assert not round_trip(victim)
    return victim


def test_without_being_asked_nothing_is_done(lab: Lab, config: Path) -> None:
    make_stuck(lab)
    before = everything(lab)
    assert mend(lab, config) == []
    assert everything(lab) == before


def test_stuck_entry_is_deleted(lab: Lab, config: Path, bystanders: list[socket.socket]) -> None:
    victim = make_stuck(lab)
    before = everything(lab)
    (stuck,) = [one for one in before.entries if "sport=9001" in one]
    number = int(re.findall(r"\bid=(\d+)", stuck)[0])
    (would,) = mend(lab, config, "--heal", "--dry-run")
    target = {
        "type": "entry", "protocol": "udp", "tuple": {"src": SOFT, "sport": 9001, "dst": SERVER, "dport": 53},
        "id": number,
    }  # fmt: skip
    assert list(would) == ["time", "action", "target", "finding", "result"]
    assert {name: value for name, value in would.items() if name != "time"} == {
        "action": "delete-entry", "target": target, "finding": "entry-stuck", "result": "dry-run",
    }  # fmt: skip
    assert everything(lab) == before
    (done,) = mend(lab, config, "--heal")
    assert (done["result"], done["target"]) == ("done", target)
    assert everything(lab) == before._replace(entries=before.entries - {stuck})
    assert round_trip(victim)
    assert mend(lab, config, "--heal") == []


def test_untracked_socket_gets_its_entry(lab: Lab, config: Path, bystanders: list[socket.socket]) -> None:
    waiting = placeholder(lab, (SOFT, 9004), WEB)
    before = everything(lab)
    (done,) = mend(lab, config, "--heal")
    assert (done["action"], done["result"], done["finding"]) == ("insert-entry", "done", "socket-untracked")
    after = everything(lab)
    (made,) = after.entries - before.entries
    assert f"src={SOFT} dst={SERVER} sport=9004 dport=443" in made
    assert after == before._replace(entries=before.entries | {made})
    # A NAT flow that wants the port walks on, and the socket keeps it when it speaks.
    other = lab.client.tcp_connect(WEB, src=(CLIENT, 9004))
    assert round_trip(other)
    waiting.settimeout(2)
    waiting.send(b"natctl")
    assert waiting.recv(100) == b"natctl"
    assert f"src={SERVER} dst={SOFT} sport=443 dport=9004" in lab.egress.run(["conntrack", "-L", "-s", SOFT]).stdout
    assert mend(lab, config, "--heal") == []


def test_leaked_socket_is_ended_at_once(
    lab: Lab, config: Path, bystanders: list[socket.socket], record_property: Callable[[str, object], None]
) -> None:
    lab.client.tcp_connect(WEB, src=(CLIENT, 9003))
    watching = Watching(lab, config, "--json", "--abort")
    wait_looking(lab, watching)
    before = everything(lab)
    victim = lab.egress.open_socket(socket.SOCK_STREAM)
    victim.bind((SOFT, 9003))
    victim.settimeout(10)
    began = time.monotonic()
    with pytest.raises(OSError) as refused:  # noqa: PT011
        victim.connect(WEB)
    took_ms = (time.monotonic() - began) * 1000
    record_property("milliseconds", round(took_ms, 1))
    print(f"connect() returned {errno.errorcode[refused.value.errno or 0]} after {took_ms:.1f} ms")
    assert refused.value.errno == errno.ECONNABORTED
    assert took_ms < 1000  # 50 on a machine that does nothing else
    ended = watching.next_action("destroy-socket")
    assert ended["target"] == {
        "type": "socket", "protocol": "tcp", "tuple": {"src": SOFT, "sport": 9003, "dst": SERVER, "dport": 443},
        "pid": os.getpid(), "command": ended["target"]["command"], "inode": os.fstat(victim.fileno()).st_ino,
    }  # fmt: skip
    victim.close()
    after = everything(lab)
    (entry,) = after.entries - before.entries
    assert "sport=9003 dport=443" in entry
    assert after == before._replace(entries=before.entries | {entry})
    assert watching.stop() == 0


def test_abort_spares_a_socket_that_talks_to_others_too(lab: Lab, config: Path) -> None:
    assert round_trip(lab.client.udp_connect(DNS, src=(CLIENT, 9001)))
    shared = lab.egress.open_socket(socket.SOCK_DGRAM)
    shared.bind((SOFT, 9001))
    shared.sendto(b"lost", DNS)
    before = everything(lab)
    assert mend(lab, config, "--abort") == []
    assert everything(lab) == before


def test_a_retry_from_the_same_port_is_ended_too_and_not_for_ever(lab: Lab, config: Path) -> None:
    lab.client.tcp_connect(WEB, src=(CLIENT, 9003))
    watching = Watching(lab, config, "--json", "--abort")
    wait_looking(lab, watching)
    for _ in range(3):
        victim = lab.egress.tcp_start(WEB, src=(SOFT, 9003))
        watching.next_action("destroy-socket")
        victim.close()
    last = lab.egress.tcp_start(WEB, src=(SOFT, 9003))
    told = watching.next_action("destroy-socket", "given-up")
    assert "alone for an hour" in told["detail"]
    assert watching.rest(2.5) == []
    assert last.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert watching.stop() == 0


def test_drifted_ruleset_is_restored_beside_the_events(lab: Lab, config: Path) -> None:
    foreign = "table inet another {\n\tchain c {\n\t\ttype filter hook input priority 0; policy accept;\n\t}\n}\n"
    lab.egress.nft(foreign)
    before = everything(lab)
    watching = Watching(lab, config, "--json", "--heal")
    lab.egress.nft("add chain inet natctl intruder\n")
    done = watching.next_action("restore-ruleset")
    assert done["target"] == {"type": "table", "family": "inet", "name": "natctl"}
    watching.next("ruleset-drift", "closed")
    assert unordered(everything(lab).ruleset) == unordered(before.ruleset)  # a rebuilt table is listed last
    assert watching.stop() == 0


def test_only_what_was_applied_last_is_restored(lab: Lab, config: Path) -> None:
    """A watch whose configuration is out of date must not put it back in place of the new one."""
    newer = config.with_name("newer.toml")
    newer.write_text(config.read_text().replace('coexist = "off"', 'coexist = "confine"'))
    lab.natctl("apply", "--config", newer, expect=0)
    before = everything(lab).ruleset
    (refused,) = mend(lab, config, "--heal")
    assert (refused["action"], refused["result"]) == ("restore-ruleset", "failed")
    assert "not the one applied last" in refused["detail"]
    assert everything(lab).ruleset == before
    lab.natctl("remove", "--config", newer, expect=0)
    (refused,) = mend(lab, newer, "--heal")
    assert refused["result"] == "failed"
    assert "natctl" not in everything(lab).ruleset


def test_a_pending_change_is_not_confirmed_by_healing(lab: Lab, config: Path) -> None:
    newer = config.with_name("newer.toml")
    newer.write_text(config.read_text().replace('coexist = "off"', 'coexist = "confine"'))
    command = [sys.executable, "-m", "nat_rewriter", "apply", "--config", str(newer), "--confirm", "30"]
    applying = lab.egress.popen(command, stdin=subprocess.PIPE)
    deadline = time.monotonic() + 10
    while "confine" not in everything(lab).ruleset:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    lab.egress.nft("add chain inet natctl intruder\n")
    (refused,) = mend(lab, newer, "--heal")
    assert (refused["result"], refused["detail"]) == ("failed", "a change of the table waits to be confirmed")
    lab.natctl("apply", "--rollback", "--config", newer, expect=0)
    applying.wait(10)
    assert "confine" not in everything(lab).ruleset


def test_somebody_at_work_on_the_table_is_waited_for(lab: Lab, config: Path) -> None:
    lab.egress.nft("add chain inet natctl intruder\n")
    held = threading.Event()
    release = threading.Event()

    def hold() -> None:
        from nat_rewriter.kernel.lock import table_lock

        with lab.egress.enter(), table_lock("natctl"):
            held.set()
            release.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(5)
    (failed,) = mend(lab, config, "--heal")
    release.set()
    holder.join()
    assert failed["result"] == "failed"
    assert "held by process" in failed["detail"]
    assert [one["result"] for one in mend(lab, config, "--heal")] == ["done"]


def test_what_is_missing_is_named_at_the_start(lab: Lab, config: Path) -> None:
    for option in ("--heal", "--abort"):
        command = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-m"]
        command += ["nat_rewriter", "watch", "--duration", "5", "--config", str(config), option]
        refused = lab.egress.run(command, check=False)
        assert refused.returncode == 4
        assert "needs CAP_NET_ADMIN" in refused.stderr
        assert not refused.stdout


def test_dry_run_needs_something_to_be_dry_about(lab: Lab, config: Path) -> None:
    assert "--heal" in lab.natctl("check", "--dry-run", "--config", config, expect=2).stderr
