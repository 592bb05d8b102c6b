"""History of real flows: who had a tuple, from the first event to the answer, through crashes and losses."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from nat_rewriter.kernel.conntrack import insert_flow
from nat_rewriter.model.tuples import FlowTuple
from netns_lab import Lab
from netns_lab.topology import CLIENT_6, SERVER_6, SOFT_ADDRESS_6

SERVER, SOFT, CLIENT = "203.0.113.1", "198.51.100.10", "10.0.0.2"
WEB = (SERVER, 443)

Answer = dict[str, Any]


class Recording:
    """A running `natctl watch --record`."""

    def __init__(self, lab: Lab, path: Path, *options: str) -> None:
        self.lab, self.path, self._tries = lab, path, 0
        config = str(lab.config(coexist="confine"))
        command = [sys.executable, "-m", "nat_rewriter", "watch", "--json", "--config", config]
        self.process = lab.egress.popen([*command, "--record", str(path), *options])
        self.until(self._is_under_way)

    def _is_under_way(self) -> bool:
        """Make a flow that no test asks for, and tell whether it was seen as it began."""
        assert self.process.poll() is None, self.process.communicate()
        self._tries += 1
        self.lab.client.udp_connect((SERVER_6, self._tries)).send(b"x")
        found = self.path.exists() and self.lab.natctl("history", "--client", CLIENT_6, "--record", self.path, "--json")
        return bool(found) and any(one["start_is"] in ("event", "kernel") for one in found.lines())

    def ask(self, *words: str) -> list[Answer]:
        return self.lab.natctl("history", *words, "--record", self.path, "--json", expect=0).lines()

    def until(self, met: Callable[[], Any], patience_s: float = 20.0) -> Any:
        end = time.monotonic() + patience_s
        while not (found := met()):
            assert time.monotonic() < end, self.process.poll()
            time.sleep(0.1)
        return found

    def told(self, words: str, *question: str) -> Answer:
        """Return the one answer, once it is there with that end."""
        return self.until(lambda: [one for one in self.ask(*question) if one["end_is"] == words])[0]  # type: ignore[no-any-return]

    def stop(self, number: int = signal.SIGTERM) -> str:
        self.process.send_signal(number)
        return self.process.communicate(timeout=20)[1]


@pytest.fixture
def ready(lab: Lab) -> Lab:
    lab.server.tcp_server(443)
    lab.egress.sysctl("net.netfilter.nf_conntrack_acct", 1)
    lab.natctl("apply", "--config", lab.config(coexist="confine"), expect=0)
    return lab


@pytest.fixture
def record(ready: Lab, tmp_path: Path) -> Callable[..., Recording]:
    return lambda *options: Recording(ready, tmp_path / "history", *options)


def conntrack_says(lab: Lab) -> tuple[int, int]:
    """The wire port and the client's port of the one NAT flow, as conntrack lists it."""
    table = lab.egress.run(["conntrack", "-L", "-p", "tcp", "-s", CLIENT]).stdout
    (found,) = re.findall(rf"src={CLIENT} dst={SERVER} sport=(\d+) .* dst={SOFT} sport=443 dport=(\d+)", table)
    return int(found[1]), int(found[0])


def test_nat_flow_appears_and_is_closed(ready: Lab, record: Callable[..., Recording]) -> None:
    recording = record()
    before = time.time()
    sock = ready.client.tcp_connect(WEB)
    wire, client = conntrack_says(ready)
    flow = recording.told("open", f"{SOFT}:{wire}")
    assert flow["tuple"] == {"src": SOFT, "sport": wire, "dst": SERVER, "dport": 443}
    assert {name: flow["holder"][name] for name in ("type", "src", "sport")} == {
        "type": "nat-flow", "src": CLIENT, "sport": client,
    }  # fmt: skip
    assert (flow["origin"], flow["slice"], flow["start_is"]) == ("forwarded", "ams-1", "event")
    assert before - 1 < seconds(flow["start"]) < time.time()
    sock.close()
    ready.egress.run(["conntrack", "-D", "-s", CLIENT])
    closed = recording.told("event", f"{SOFT}:{wire}")
    assert closed["start"] == flow["start"]
    assert seconds(flow["start"]) <= seconds(closed["end"]) <= time.time()
    assert closed["packets"][0] >= 3
    assert recording.ask("--client", CLIENT) == [closed]
    assert recording.ask(f"{SOFT}:{wire}", "--at", closed["start"]) == [closed]
    assert recording.ask(f"{SOFT}:{wire}", "--until", "1m ago") == []
    assert recording.stop() == ""
    assert recording.ask(f"{SOFT}:{wire}") == [closed]


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_local_flow_is_named_with_its_process(ready: Lab, record: Callable[..., Recording]) -> None:
    recording = record()
    sock = ready.egress.tcp_connect(WEB, src=(SOFT, 9005))
    flow = recording.told("open", f"{SOFT}:9005")
    assert flow["origin"] == "local"
    assert flow["holder"]["pid"] == os.getpid()
    assert flow["holder"]["command"] == Path("/proc/self/comm").read_text().strip()
    sock.close()


def test_ipv6_udp_and_icmp(ready: Lab, record: Callable[..., Recording]) -> None:
    recording = record()
    ready.client.udp_connect((SERVER, 53)).send(b"x")
    assert ready.client.ping(SERVER)
    udp = recording.told("open", SOFT, "--protocol", "udp", "--to", f"{SERVER}:53")
    icmp = recording.told("open", SOFT, "--protocol", "icmp")
    assert udp["tuple"]["dport"] == 53
    assert 9000 <= icmp["tuple"]["icmp_id"] <= 9009
    ready.client.tcp_connect((SERVER_6, 443))
    assert recording.told("open", SOFT_ADDRESS_6, "--protocol", "tcp")["tuple"]["dst"] == SERVER_6


@pytest.mark.parametrize("timestamps", [0, 1])
def test_flow_that_was_there_before(ready: Lab, record: Callable[..., Recording], timestamps: int) -> None:
    ready.egress.sysctl("net.netfilter.nf_conntrack_timestamp", timestamps)
    sock = ready.client.tcp_connect(WEB)
    connected = time.time()
    time.sleep(0.5)
    flow = record().told("open", SOFT)
    assert flow["start_is"] == ("kernel" if timestamps else "first-sight")
    assert (seconds(flow["start"]) < connected) == bool(timestamps)
    sock.close()


def test_sigkill_loses_at_most_the_last_second(ready: Lab, record: Callable[..., Recording]) -> None:
    recording = record()
    sent = []
    end = time.monotonic() + 4
    while time.monotonic() < end:
        ready.client.udp_connect((SERVER, 1024 + len(sent))).send(b"x")
        sent.append(time.monotonic())
        time.sleep(0.02)
    recording.process.kill()
    killed = time.monotonic()
    recording.process.wait()
    found = recording.ask(SOFT, "--protocol", "udp")
    assert {one["end_is"] for one in found} == {"recording-ended"}
    assert {one["tuple"]["dport"] for one in found} >= {
        1024 + number for number, moment in enumerate(sent) if moment < killed - 1.0
    }
    # The next recorder goes on beside what is left, and seals it.
    again = Recording(ready, recording.path)
    again.until(lambda: list(recording.path.glob("00000001.*.flows")))
    known = {
        one["tuple"]["dport"] for one in again.ask(SOFT, "--protocol", "udp") if one["end_is"] == "recording-ended"
    }
    assert known == {one["tuple"]["dport"] for one in found}


def test_readers_beside_the_writer(ready: Lab, record: Callable[..., Recording]) -> None:
    recording = record()
    ready.client.tcp_connect(WEB)
    recording.told("open", SOFT)
    command = [sys.executable, "-m", "nat_rewriter", "history", SOFT, "--json", "--record", str(recording.path)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    for number in range(200):
        ready.client.udp_connect((SERVER, 2000 + number)).send(b"x")
    for reader in readers:
        assert b"nat-flow" in reader.communicate(timeout=30)[0]
        assert reader.returncode == 0
    recording.until(lambda: len(recording.ask(SOFT, "--protocol", "udp")) == 200)
    assert recording.stop() == ""


def test_what_is_too_old_is_deleted(ready: Lab, record: Callable[..., Recording]) -> None:
    recording = record("--keep", "3s")
    ready.client.udp_connect((SERVER, 2000)).send(b"x")
    recording.told("open", SOFT, "--to", f"{SERVER}:2000")
    ready.egress.run(["conntrack", "-D", "-p", "udp", "-s", CLIENT])
    recording.told("event", SOFT, "--to", f"{SERVER}:2000")

    ready.client.udp_connect((SERVER, 3000)).send(b"x")
    recording.until(lambda: not recording.ask(SOFT, "--to", f"{SERVER}:2000"))
    assert recording.ask(SOFT, "--to", f"{SERVER}:3000")


def test_second_writer_is_refused(ready: Lab, record: Callable[..., Recording]) -> None:
    recording = record()
    second = ready.natctl("watch", "--config", ready.config(coexist="confine"), "--record", recording.path, expect=1)
    assert "another natctl writes it" in second.stderr


def test_lost_events_are_made_good(ready: Lab, tmp_path: Path) -> None:
    """While the recorder's watcher is stopped more events come than its socket holds; among them an end."""
    recording = Recording(ready, tmp_path / "history")
    ready.client.tcp_connect(WEB)
    recording.told("open", SOFT)
    recording.process.send_signal(signal.SIGSTOP)
    with ready.egress.enter():
        for number in range(60_000):  # some 1280 bytes each, of 32 MiB
            insert_flow(FlowTuple("tcp", ip_address(SERVER), 1 + number, ip_address("192.0.2.1"), 80), 300)
        ready.egress.run(["conntrack", "-D", "-s", CLIENT])
        ready.client.udp_connect((SERVER, 77)).send(b"x")
    recording.process.send_signal(signal.SIGCONT)
    gone = recording.told("seen-gone", SOFT, "--protocol", "tcp")
    assert gone["start_is"] == "event"
    assert recording.told("open", SOFT, "--protocol", "udp")["start_is"] == "first-sight"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_full_disk_is_told_and_the_watcher_goes_on(ready: Lab, small_disk: Path) -> None:
    recording = Recording(ready, small_disk / "history")
    ready.client.tcp_connect(WEB)
    recording.told("open", SOFT)
    filler = small_disk / "filler"
    with suppress(OSError), filler.open("wb") as file:
        file.write(bytes(1 << 20))
    for number in range(10_000):
        with ready.client.udp_connect((SERVER, 1024 + number)) as datagrams:
            datagrams.send(b"x")
    assert recording.process.stderr
    assert re.search("full|no space", line := recording.process.stderr.readline()), line
    filler.unlink()
    assert "written again" in recording.process.stderr.readline()
    recording.until(lambda: len(recording.ask(SOFT, "--protocol", "udp")) > 10)
    assert recording.process.poll() is None


def test_bad_words(ready: Lab, tmp_path: Path) -> None:
    config = ready.config(coexist="confine")
    (tmp_path / "letters").write_text("mine")
    path = tmp_path / "history"
    for words in (["--keep", "30d"], ["--record", path, "--keep", "30"], ["--record", path, "--keep-size", "x"]):
        ready.natctl("watch", "--config", config, *words, expect=2)
    assert "not a history" in ready.natctl("watch", "--config", config, "--record", tmp_path, expect=1).stderr
