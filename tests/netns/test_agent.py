"""``natctl agent`` on the kernel: what it holds is used, and after its term nothing is, whatever became of it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pooling import CLIENT, SERVER, SOFT, WEB, works
from waiting import wait_until

from nat_rewriter.model.pools import StoreAddress
from nat_rewriter.pool import PoolStore, open_store
from netns_lab import Lab
from netns_lab.host import round_trip
from netns_lab.running_agent import RunningAgent

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


@pytest.fixture
def config(fleet: Lab, tmp_path: Path) -> Callable[..., Path]:
    def write(ports: str = "9216-10239", size: int = 256, hold_down: int = 1, more: str = "") -> Path:
        text = CONFIG.format(ports=ports, size=size, hold_down=hold_down, more=more, store=tmp_path / "pools")
        path = fleet.config_file(text)
        fleet.natctl("pool", "init", "--config", path, expect=0)
        return path

    return write


@pytest.fixture
def agent(fleet: Lab) -> Iterator[Callable[..., RunningAgent]]:
    with ExitStack() as agents:

        def start(config: Path, *options: str) -> RunningAgent:
            running = RunningAgent(fleet.egress, "egress", config, options)
            running.start()
            agents.callback(running.end)
            return running

        yield start


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PoolStore]:
    with open_store(StoreAddress("sqlite", str(tmp_path / "pools"))) as opened:
        yield opened


def wire_ports(lab: Lab) -> set[int]:
    flows = lab.natctl("flows", "--json", "--address", SOFT, expect=0).lines()
    return {flow["reply"]["dport"] for flow in flows if flow["original"]["src"] == CLIENT}


def test_what_is_acquired_is_used(fleet: Lab, config: Callable[..., Path], agent: Callable[..., RunningAgent]) -> None:
    running = agent(config())
    held = running.wait_for("acquired")
    running.wait_for("applied", count=2)
    first, last = map(int, held["ports"].split("-"))
    with fleet.client.tcp_connect(WEB) as sock:
        assert round_trip(sock)
        assert {first <= port <= last for port in wire_ports(fleet)} == {True}
    assert round_trip(fleet.client.udp_connect((SERVER, 53)))
    assert fleet.client.ping(SERVER)
    local = fleet.egress.tcp_connect(WEB, src=(SOFT, first))
    assert round_trip(local)
    with pytest.raises(OSError, match="timed out"):
        fleet.egress.tcp_connect(WEB, src=(SOFT, 9216 if first != 9216 else 9472), timeout_s=0.5)
    assert not any(fleet.leaks().sent.values())


def test_a_frozen_agent_uses_nothing_after_its_term(
    fleet: Lab, config: Callable[..., Path], agent: Callable[..., RunningAgent], store: PoolStore
) -> None:
    running = agent(config())
    held = running.wait_for("acquired")
    running.wait_for("applied", count=2)
    sock = fleet.client.tcp_connect(WEB)
    assert round_trip(sock)
    running.freeze()
    wait_until(lambda: all(each.resting for each in store.holdings("fleet")))
    # By the time the store lets go, the kernel has stopped.
    assert not works(fleet)
    sock.settimeout(0.5)
    sock.send(b"anybody?")
    with pytest.raises(TimeoutError):
        sock.recv(100)
    running.wake()
    lost = running.wait_for("lost")
    assert lost["ports"] == held["ports"]
    running.wait_for("acquired", count=2)
    wait_until(lambda: works(fleet))


def test_an_agent_that_is_started_again_goes_on(
    fleet: Lab, config: Callable[..., Path], agent: Callable[..., RunningAgent], store: PoolStore
) -> None:
    path = config()
    running = agent(path)
    running.wait_for("applied", count=2)
    sock = fleet.client.tcp_connect(WEB)
    before = [each.block for each in store.holdings("fleet")]
    told = len(running.deeds())
    running.kill()
    assert round_trip(sock)
    running.start()
    running.wait_for("applied", told)
    time.sleep(TTL_S + 1)
    assert round_trip(sock)
    assert [each.block for each in store.holdings("fleet")] == before
    assert "lost" not in {deed["event"] for deed in running.deeds()}


def test_a_store_that_is_silent(
    fleet: Lab, config: Callable[..., Path], agent: Callable[..., RunningAgent], tmp_path: Path
) -> None:
    running = agent(config())
    running.wait_for("applied", count=2)
    with sqlite3.connect(tmp_path / "pools", isolation_level=None) as database:
        database.execute("BEGIN IMMEDIATE")
        silent = running.wait_for("store-silent")
        assert "locked" in silent["detail"]
        wait_until(lambda: not works(fleet))
        database.execute("ROLLBACK")
    running.wait_for("store-back")
    wait_until(lambda: works(fleet))


def test_what_the_store_has_let_go_of_is_shut_at_once(
    fleet: Lab, config: Callable[..., Path], agent: Callable[..., RunningAgent], tmp_path: Path
) -> None:
    running = agent(config())
    first = running.wait_for("acquired")["ports"].split("-")[0]
    running.wait_for("applied", count=2)
    with sqlite3.connect(tmp_path / "pools") as database:
        database.execute("UPDATE holding SET host = 'another'")
    assert running.wait_for("lost")["detail"] == "the store has let go of it before its term ended"
    running.wait_for("acquired", count=2)
    sets = fleet.egress.run(["nft", "list", "table", "inet", "natctl_terms"]).stdout.split("chain")[0]
    assert f"{first}-" not in sets
    wait_until(lambda: works(fleet))


def test_slices_follow_the_use(fleet: Lab, config: Callable[..., Path], agent: Callable[..., RunningAgent]) -> None:
    path = config(size=8, hold_down=0, more="drain_s = 0\nlow_water = 0.2")
    running = agent(path)
    running.wait_for("applied", count=2)
    flows = [fleet.client.udp_connect((SERVER, 53)) for _ in range(7)]
    assert all(round_trip(sock) for sock in flows)
    running.wait_for("acquired", count=2)
    running.wait_for("applied", count=3)
    with fleet.egress.enter():
        fleet.egress.run(["conntrack", "-D", "-s", CLIENT])
    running.wait_for("draining")
    released = running.wait_for("released")
    assert fleet.natctl("pool", "show", "--config", path, "--json").json()["slices"]["held"] == 1
    assert released["ports"]
    wait_until(lambda: works(fleet))


def test_give_back(
    fleet: Lab, config: Callable[..., Path], agent: Callable[..., RunningAgent], store: PoolStore
) -> None:
    running = agent(config(), "--give-back")
    running.wait_for("applied", count=2)
    sock = fleet.client.tcp_connect(WEB)
    assert round_trip(sock)
    running.terminate()
    assert running.wait() == 0
    assert all(each.resting for each in store.holdings("fleet"))
    assert wire_ports(fleet) == set()
    with pytest.raises(OSError, match="timed out"):  # the fence stays
        fleet.egress.tcp_connect(WEB, src=(SOFT, 9216), timeout_s=0.5)


def test_remove_takes_the_terms_away(
    fleet: Lab, config: Callable[..., Path], agent: Callable[..., RunningAgent], tmp_path: Path
) -> None:
    path = config()
    running = agent(path)
    running.wait_for("applied", count=2)
    running.terminate()
    running.wait()
    assert "natctl_terms" in fleet.egress.run(["nft", "list", "tables"]).stdout
    fleet.natctl("remove", "--config", path, "--state", path.with_suffix(".state"), expect=0)
    assert "natctl" not in fleet.egress.run(["nft", "list", "tables"]).stdout


def test_what_an_agent_cannot_do(fleet: Lab, config: Callable[..., Path], tmp_path: Path) -> None:
    path = fleet.config()
    told = fleet.natctl("agent", "--config", path, "--state", tmp_path / "state", expect=2)
    assert "there is no [[pool]] in the configuration" in told.stderr
    path = fleet.config_file(CONFIG.format(ports="9216-10239", size=256, hold_down=1, more="", store=tmp_path / "new"))
    told = fleet.natctl("agent", "--config", path, "--state", tmp_path / "state", expect=1)
    assert "there is no such pool in the store" in told.stderr
