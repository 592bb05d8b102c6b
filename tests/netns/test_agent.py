"""``natctl agent`` on the kernel: what it holds is used, and after its term nothing is, whatever became of it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from nat_rewriter.model.pools import StoreAddress
from nat_rewriter.pool import PoolStore, open_store
from netns_lab import Lab
from netns_lab.host import end_process, round_trip

SERVER, SOFT, CLIENT = "203.0.113.1", "198.51.100.10", "10.0.0.2"
WEB = (SERVER, 443)
TTL_S = 5
CONFIG = """version = 1
[controller]
table = "natctl"
[[pool]]
name = "fleet"
addresses = ["198.51.100.10"]
ports = "{ports}"
slice_size = {size}
protocols = ["tcp", "udp", "icmp"]
ttl_s = 5
hold_down_s = {hold_down}
{more}
[store]
url = "sqlite:{store}"
[[snat]]
name = "clients"
source = ["10.0.0.0/24"]
pools = ["fleet"]
"""


class Running:
    """A running agent, and what it has told."""

    def __init__(self, lab: Lab, config: Path, state: Path, *options: str) -> None:
        words = ["agent", "--json", "--host", "egress", "--config", str(config), "--state", str(state), *options]
        self.process = lab.egress.popen([sys.executable, "-m", "nat_rewriter", *words])
        assert self.process.stdout
        os.set_blocking(self.process.stdout.fileno(), False)
        self._text, self.deeds = "", list[dict[str, Any]]()

    def events(self) -> list[str]:
        assert self.process.stdout
        with suppress(BlockingIOError):
            self._text += os.read(self.process.stdout.fileno(), 1 << 20).decode()
        *lines, self._text = self._text.split("\n")
        self.deeds += [json.loads(line) for line in lines]
        return [deed["event"] for deed in self.deeds]

    def until(self, event: str, count: int = 1, patience_s: float = 40.0) -> dict[str, Any]:
        end = time.monotonic() + patience_s
        while self.events().count(event) < count:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end, self.deeds
            time.sleep(0.05)
        return [deed for deed in self.deeds if deed["event"] == event][count - 1]

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(30)


@pytest.fixture
def fleet(lab_factory: Callable[..., Lab]) -> Lab:
    """A lab whose upstream lets all ports through that the tests share."""
    lab = lab_factory(slices=[f"{SOFT}:9216-10239"])
    lab.server.tcp_server(443)
    lab.server.udp_server(53)
    return lab


@pytest.fixture
def config(fleet: Lab, tmp_path: Path) -> Callable[..., Path]:
    def write(ports: str = "9216-10239", size: int = 256, hold_down: int = 1, more: str = "") -> Path:
        text = CONFIG.format(ports=ports, size=size, hold_down=hold_down, more=more, store=tmp_path / "pools")
        path = fleet.config_file(text)
        fleet.natctl("pool", "init", "--config", path, expect=0)
        return path

    return write


@pytest.fixture
def agent(fleet: Lab, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    with ExitStack() as processes:

        def start(config: Path, *options: str) -> Running:
            running = Running(fleet, config, tmp_path / "state", *options)
            processes.callback(end_process, running.process)
            return running

        yield start


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PoolStore]:
    with open_store(StoreAddress("sqlite", str(tmp_path / "pools"))) as opened:
        yield opened


def wire_ports(lab: Lab) -> set[int]:
    flows = lab.natctl("flows", "--json", "--address", SOFT, expect=0).lines()
    return {flow["reply"]["dport"] for flow in flows if flow["original"]["src"] == CLIENT}


def works(lab: Lab) -> bool:
    try:
        with lab.client.tcp_connect(WEB, timeout_s=0.5) as sock:
            return round_trip(sock)
    except OSError:
        return False


def until(met: Callable[[], Any], patience_s: float = 30.0) -> None:
    end = time.monotonic() + patience_s
    while not met():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_what_is_acquired_is_used(fleet: Lab, config: Callable[..., Path], agent: Callable[..., Running]) -> None:
    running = agent(config())
    held = running.until("acquired")
    running.until("applied", 2)
    first, last = map(int, held["ports"].split("-"))
    with fleet.client.tcp_connect(WEB) as sock:
        assert round_trip(sock)
        assert all(first <= port <= last for port in wire_ports(fleet))
    assert round_trip(fleet.client.udp_connect((SERVER, 53)))
    assert fleet.client.ping(SERVER)
    local = fleet.egress.tcp_connect(WEB, src=(SOFT, first))
    assert round_trip(local)
    with pytest.raises(OSError, match="timed out"):
        fleet.egress.tcp_connect(WEB, src=(SOFT, 9216 if first != 9216 else 9472), timeout_s=0.5)
    assert not any(fleet.leaks().sent.values())


def test_a_frozen_agent_uses_nothing_after_its_term(
    fleet: Lab, config: Callable[..., Path], agent: Callable[..., Running], store: PoolStore
) -> None:
    running = agent(config())
    held = running.until("acquired")
    running.until("applied", 2)
    sock = fleet.client.tcp_connect(WEB)
    assert round_trip(sock)
    running.process.send_signal(signal.SIGSTOP)
    until(lambda: all(each.resting for each in store.holdings("fleet")))
    # By the time the store lets go, the kernel has stopped.
    assert not works(fleet)
    sock.settimeout(0.5)
    sock.send(b"anybody?")
    with pytest.raises(TimeoutError):
        sock.recv(100)
    running.process.send_signal(signal.SIGCONT)
    lost = running.until("lost")
    assert lost["ports"] == held["ports"]
    running.until("acquired", 2)
    until(lambda: works(fleet))


def test_an_agent_that_is_started_again_goes_on(
    fleet: Lab, config: Callable[..., Path], agent: Callable[..., Running], store: PoolStore
) -> None:
    path = config()
    first = agent(path)
    first.until("applied", 2)
    sock = fleet.client.tcp_connect(WEB)
    before = [each.block for each in store.holdings("fleet")]
    first.stop(signal.SIGKILL)
    assert round_trip(sock)
    second = agent(path)
    second.until("applied")
    time.sleep(TTL_S + 1)
    assert round_trip(sock)
    assert [each.block for each in store.holdings("fleet")] == before
    assert "lost" not in second.events()


def test_a_store_that_is_silent(
    fleet: Lab, config: Callable[..., Path], agent: Callable[..., Running], tmp_path: Path
) -> None:
    running = agent(config())
    running.until("applied", 2)
    with sqlite3.connect(tmp_path / "pools", isolation_level=None) as database:
        database.execute("BEGIN IMMEDIATE")
        silent = running.until("store-silent")
        assert "locked" in silent["detail"]
        until(lambda: not works(fleet))
        database.execute("ROLLBACK")
    running.until("store-back")
    until(lambda: works(fleet))


def test_what_the_store_has_let_go_of_is_shut_at_once(
    fleet: Lab, config: Callable[..., Path], agent: Callable[..., Running], tmp_path: Path
) -> None:
    running = agent(config())
    first = running.until("acquired")["ports"].split("-")[0]
    running.until("applied", 2)
    with sqlite3.connect(tmp_path / "pools") as database:
        database.execute("UPDATE holding SET host = 'another'")
    assert running.until("lost")["detail"] == "the store has let go of it before its term ended"
    running.until("acquired", 2)
    sets = fleet.egress.run(["nft", "list", "table", "inet", "natctl_terms"]).stdout.split("chain")[0]
    assert f"{first}-" not in sets
    until(lambda: works(fleet))


def test_slices_follow_the_use(fleet: Lab, config: Callable[..., Path], agent: Callable[..., Running]) -> None:
    path = config(size=8, hold_down=0, more="drain_s = 0\nlow_water = 0.2")
    running = agent(path)
    running.until("applied", 2)
    flows = [fleet.client.udp_connect((SERVER, 53)) for _ in range(7)]
    assert all(round_trip(sock) for sock in flows)
    running.until("acquired", 2)
    running.until("applied", 3)
    with fleet.egress.enter():
        fleet.egress.run(["conntrack", "-D", "-s", CLIENT])
    running.until("draining")
    released = running.until("released")
    assert fleet.natctl("pool", "show", "--config", path, "--json").json()["slices"]["held"] == 1
    assert released["ports"]
    until(lambda: works(fleet))


def test_give_back(fleet: Lab, config: Callable[..., Path], agent: Callable[..., Running], store: PoolStore) -> None:
    running = agent(config(), "--give-back")
    running.until("applied", 2)
    sock = fleet.client.tcp_connect(WEB)
    assert round_trip(sock)
    running.stop()
    assert running.process.returncode == 0
    assert all(each.resting for each in store.holdings("fleet"))
    assert wire_ports(fleet) == set()
    with pytest.raises(OSError, match="timed out"):  # the fence stays
        fleet.egress.tcp_connect(WEB, src=(SOFT, 9216), timeout_s=0.5)


def test_remove_takes_the_terms_away(
    fleet: Lab, config: Callable[..., Path], agent: Callable[..., Running], tmp_path: Path
) -> None:
    path = config()
    running = agent(path)
    running.until("applied", 2)
    running.stop()
    assert "natctl_terms" in fleet.egress.run(["nft", "list", "tables"]).stdout
    fleet.natctl("remove", "--config", path, "--state", tmp_path / "state", expect=0)
    assert "natctl" not in fleet.egress.run(["nft", "list", "tables"]).stdout


def test_what_an_agent_cannot_do(fleet: Lab, config: Callable[..., Path], tmp_path: Path) -> None:
    path = fleet.config()
    told = fleet.natctl("agent", "--config", path, "--state", tmp_path / "state", expect=1)
    assert "there is no [[pool]] in the configuration" in told.stderr
    path = fleet.config_file(CONFIG.format(ports="9216-10239", size=256, hold_down=1, more="", store=tmp_path / "new"))
    told = fleet.natctl("agent", "--config", path, "--state", tmp_path / "state", expect=1)
    assert "there is no such pool in the store" in told.stderr
