"""``natctl lease``: held in the foreground and detached, listed and released, and handed to programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from leasing import SERVERS, SLICES, Desk, desk, forget_flows, sysctl
from waiting import WITHIN_S, wait_until

from bench.coexist.settings import configuration
from netns_lab import Lab
from netns_lab.lab import Outcome

NATCTL = [sys.executable, "-m", "nat_rewriter"]
SAY = (
    "import os, socket; s = socket.socket(fileno=int(os.environ['NATCTL_LEASE_FD'])); s.settimeout(5); s.send(b'hi'); "
    "print(s.recv(2).decode(), *s.getsockname()[:2], *(os.environ['LEASE_' + name] for name in "
    "('PROTOCOL', 'SOURCE', 'SOURCE_PORT', 'DESTINATION', 'DESTINATION_PORT', 'SLICE', 'STRATEGY')))"
)


@pytest.fixture
def at(lease_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("NATCTL_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "natctl.toml").write_text(configuration(lease_lab.slices))
    with desk(lease_lab) as opened:
        yield opened


@pytest.fixture
def options(at: Desk, tmp_path: Path) -> list[str]:
    """What every command that takes a lease is given."""
    return ["--config", str(tmp_path / "natctl.toml"), "--slice", "ams-1", "--to", f"{SERVERS[4]}:{at.port}"]


def listed(at: Desk) -> list[Any]:
    return at.lab.natctl("lease", "list", "--json", expect=0).lines()


def start(at: Desk, *arguments: str, **streams: Any) -> subprocess.Popen[str]:
    return at.lab.egress.popen([*NATCTL, "lease", *arguments], **streams)


def first_record(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_lease_is_held_in_the_foreground_until_a_signal(at: Desk, options: list[str], end: signal.Signals) -> None:
    holder = start(at, "acquire", *options, "--json")
    record = first_record(holder)
    assert listed(at) == [record]
    assert record["pid"] == holder.pid
    assert at.nat_flow(record["tuple"]["sport"])[0] != record["tuple"]["sport"]
    holder.send_signal(end)
    assert holder.wait(WITHIN_S) == 0
    assert (listed(at), at.entries(), at.sockets()) == ([], [], [])


def test_a_lease_for_some_seconds(at: Desk, options: list[str]) -> None:
    done = at.lab.natctl("lease", "acquire", *options, "--for", "0.1", "--port", "9003", expect=0)
    assert f"tcp 198.51.100.10:9003 -> {SERVERS[4]}:{at.port}  ams-1  complete  held  pid " in done.stdout
    assert (listed(at), at.entries()) == ([], [])


def test_a_detached_lease_outlives_its_command_and_is_released(at: Desk, options: list[str]) -> None:
    first = at.lab.natctl("lease", "acquire", *options, "--detach", "--json", expect=0).json()
    second = at.lab.natctl("lease", "acquire", *options, "--detach", "--json", expect=0).json()
    assert listed(at) == [first, second]
    assert len(at.entries()) == 2
    at.lab.natctl("lease", "release", first["id"], expect=0)
    assert listed(at) == [second]
    at.lab.natctl("lease", "release", "--all", expect=0)
    assert (listed(at), at.entries(), at.sockets()) == ([], [], [])


def test_the_record_of_a_holder_that_was_killed_is_cleared_away(at: Desk, options: list[str], tmp_path: Path) -> None:
    record = at.lab.natctl("lease", "acquire", *options, "--detach", "--json", expect=0).json()
    os.kill(record["pid"], signal.SIGKILL)
    wait_until(lambda: listed(at) == [], "the record is cleared away")
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".toml"] == []
    gone = at.lab.natctl("lease", "release", record["id"], expect=1)
    assert "none is held under that id" in gone.stderr


def test_a_detached_lease_that_cannot_be_had_says_so(at: Desk, options: list[str]) -> None:
    at.nat_flow(9003)
    failed = at.lab.natctl("lease", "acquire", *options, "--port", "9003", "--detach", expect=1)
    assert failed.stderr.startswith("natctl: acquire lease: the tuple is taken: 'tcp 198.51.100.10:9003 ")
    assert (listed(at), at.entries()) == ([], [])


def test_a_lease_that_is_lost_ends_with_exit_code_1(at: Desk, options: list[str]) -> None:
    # Without events NAT has the time that it takes.
    with sysctl(at.lab, "net.netfilter.nf_conntrack_events", 0):
        holder = start(at, "acquire", *options, "--port", "9003", "--json")
        first_record(holder)
        forget_flows(at.lab)
        assert at.nat_flow(9003)[0] == 9003
        assert holder.wait(WITHIN_S) == 1


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_program_gets_the_connected_socket(at: Desk, tmp_path: Path, family: int, protocol: str) -> None:
    host = {4: SERVERS[4], 6: f"[{SERVERS[6]}]"}[family]
    done = at.lab.natctl(
        "lease", "run", "--config", tmp_path / "natctl.toml", "--slice", SLICES[family], "--to", f"{host}:{at.port}",
        "--protocol", protocol, "--", sys.executable, "-c", SAY, expect=0,
    )  # fmt: skip
    ((source, port),) = at.servers[protocol].peers
    said = ["hi", source, port, protocol, source, port, SERVERS[family], at.port, SLICES[family], "complete"]
    assert done.stdout.split() == [str(word) for word in said]
    assert listed(at) == []
    assert at.entries("udp") == []


def run(at: Desk, options: list[str], *command: str, expect: int) -> Outcome:
    return at.lab.natctl("lease", "run", *options, "--", *command, expect=expect)


def test_the_programs_exit_code_is_passed_on(at: Desk, options: list[str]) -> None:
    run(at, options, "sh", "-c", "exit 7", expect=7)
    run(at, options, "sh", "-c", "kill -9 $$", expect=137)
    assert "no such file or directory: '/no/such'" in run(at, options, "/no/such", expect=1).stderr
    assert listed(at) == []


def test_a_program_that_runs_is_listed_and_is_told_to_end(at: Desk, options: list[str]) -> None:
    command = ["sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done"]
    running = start(at, "run", *options, "--", *command)
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    (record,) = listed(at)
    assert (record["state"], record["pid"]) == ("connected", running.pid)
    at.lab.natctl("lease", "release", record["id"], expect=0)
    assert running.wait(WITHIN_S) == 5


def test_the_connection_ends_with_the_program(at: Desk, options: list[str]) -> None:
    running = start(at, "run", *options, "--", "sh", "-c", "exec 3>&-; echo closed; sleep 60")
    assert running.stdout is not None
    assert running.stdout.readline() == "closed\n"
    wait_until(lambda: not [line for line in at.sockets() if "ESTAB" in line], "the connection ends")
    running.terminate()
    assert running.wait(WITHIN_S) == 128 + signal.SIGTERM


def test_errors_leave_nothing_and_name_what_is_wrong(at: Desk, options: list[str], tmp_path: Path) -> None:
    config = ["--config", str(tmp_path / "natctl.toml")]
    wrong = [
        (["--slice", "fra-1", "--to", "203.0.113.1:443"], 2, "no slice of that name, expected one of ams-1, ams-2"),
        (["--slice", "ams-1", "--to", "203.0.113.1"], 2, "expected HOST:PORT, an IPv6 address in brackets"),
        (["--slice", "ams-1", "--to", "2001:db8::1:443"], 2, "expected HOST:PORT, an IPv6 address in brackets"),
        (["--slice", "ams-1", "--to", "no-such-host.invalid:443"], 1, "resolve destination: "),
        (["--slice", "ams-1", "--to", "203.0.113.1:1"], 1, "connection refused: 'tcp 198.51.100.10:"),
        (
            ["--slice", "ams-1", "--to", "203.0.113.1:443", "--protocol", "udp", "--strategy", "fast-open"],
            2,
            "TCP only",
        ),
    ]
    for words, code, message in wrong:
        assert message in at.lab.natctl("lease", "run", *config, *words, "--", "true", expect=code).stderr
    held = at.lab.natctl("lease", "acquire", *options, "--strategy", "port-range", expect=2)
    assert "use natctl lease run" in held.stderr
    assert "expected ids of leases, or --all" in at.lab.natctl("lease", "release", expect=2).stderr
    assert (listed(at), at.entries(), at.sockets()) == ([], [], [])


def test_a_silent_destination_times_out(at: Desk, options: list[str]) -> None:
    at.lab.server.nft(
        f"table inet deaf {{ chain c {{ type filter hook input priority 0; tcp dport {at.port} drop; }}; }}"
    )
    failed = at.lab.natctl("lease", "run", *options, "--timeout", "0.2", "--", "true", expect=1)
    at.lab.server.nft("delete table inet deaf")
    assert "no answer within 0.2 s" in failed.stderr
    assert (at.entries(), at.sockets()) == ([], [])


def test_a_full_slice_refuses(at: Desk, options: list[str]) -> None:
    for _ in range(10):
        at.acquire("complete")
    failed = at.lab.natctl("lease", "run", *options, "--", "true", expect=1)
    assert f"no tcp port of slice ams-1 is free towards: '{SERVERS[4]}:{at.port}'" in failed.stderr


def test_without_the_capability_the_error_names_it(at: Desk, options: list[str]) -> None:
    for strategy in ("auto", "reservation", "tcp-repair"):
        done = at.lab.egress.run(
            ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", *NATCTL, "lease", "acquire", *options,
             "--strategy", strategy, "--for", "1"], check=False,
        )  # fmt: skip
        assert (done.returncode, "needs CAP_NET_ADMIN" in done.stderr) == (4, True)
    assert (at.entries(), at.sockets()) == ([], [])


def test_placeholders_without_nat_need_no_capability(at: Desk, options: list[str]) -> None:
    for strategy in ("fast-open", "port-range"):
        done = at.lab.egress.run(
            ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", *NATCTL, "lease", "run", *options,
             "--strategy", strategy, "--", "true"], check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")


def test_leases_of_one_configuration_are_listed(at: Desk, options: list[str], tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(configuration(at.lab.slices).replace("ams-1", "fra-1"))
    holder = start(at, "acquire", *options, "--json", stdout=subprocess.PIPE)
    held = first_record(holder)["id"]
    for path, found in ((tmp_path / "natctl.toml", [held]), (other, [])):
        records = at.lab.natctl("lease", "list", "--json", "--config", path, expect=0).lines()
        assert [record["id"] for record in records] == found
    at.lab.natctl("lease", "list", "--config", tmp_path / "none.toml", expect=2)
    at.lab.natctl("lease", "release", held, expect=0)
    assert holder.wait(WITHIN_S) == 0
