"""``natctl pool transfer``: a slice goes to another host with its flows, and none of them notices more than a pause."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from moving import EGRESS, SERVER, SERVER_6, SOFT, SOFT_6, Flows, Pair, pair
from waiting import wait_until

from nat_rewriter.model.pools import Holding, StoreAddress
from nat_rewriter.pool import PoolStore, open_store
from netns_lab.etcd_cluster import Cluster, Place
from netns_lab.host import round_trip
from netns_lab.running_agent import RunningAgent

CONFIG = """version = 1
[[pool]]
name = "fleet"
addresses = ["{address}"]
ports = "9216-10239"
slice_size = 1024
ttl_s = {ttl_s}
hold_down_s = 2
low_water = 0.001
least = 1
[store]
url = "{store}"
[[snat]]
name = "clients"
source = ["{clients}"]
pools = ["fleet"]
"""
CLIENTS = {SOFT: "10.0.0.0/24", SOFT_6: "2001:db8:10::/64"}
WEB = {SOFT: (SERVER, 443), SOFT_6: (SERVER_6, 443)}
LONG = bool(os.environ.get("NATCTL_LONG"))


class Fleet:
    """Two hosts with an agent each; the first of them holds the one slice that there is."""

    def __init__(
        self, hosts: Pair, directory: Path, resources: ExitStack, store: StoreAddress, address: str, ttl_s: int
    ) -> None:
        self.hosts, self.address, self.directory = hosts, address, directory
        self.config = directory / "natctl.toml"
        text = CONFIG.format(address=address, clients=CLIENTS[address], store=store, ttl_s=ttl_s)
        self.config.write_text(text)
        hosts.natctl("egress-a", "pool", "init", "--config", self.config)
        with hosts.server.enter():
            self.store: PoolStore = resources.enter_context(open_store(store))
            self.store.acquire("fleet", "egress-a", 1)
        self.agents: dict[str, RunningAgent] = {}
        for name in EGRESS:
            own = directory / f"{name}.toml"
            own.write_text(text)
            self.agents[name] = RunningAgent(hosts.egress[name], name, own)
            self.agents[name].start()
            resources.callback(self.agents[name].end)
        for agent in self.agents.values():
            agent.wait_for("applied")

    def transfer(
        self, *words: str, giver: str = "egress-a", taker: str = "egress-b"
    ) -> subprocess.CompletedProcess[str]:
        """Have the slice moved."""
        return self.hosts.natctl(giver, *self._transfer(giver, taker), *words, check=False)

    def start_transfer(self, *words: str) -> subprocess.Popen[str]:
        """Begin to have it moved."""
        command = [sys.executable, "-m", "nat_rewriter", *self._transfer(*EGRESS), *words]
        return self.hosts.egress["egress-a"].popen(command)

    def _transfer(self, giver: str, taker: str) -> list[str]:
        slice_ = f"[{self.address}]:9216" if ":" in self.address else f"{self.address}:9216"
        words = ["pool", "transfer", "fleet", slice_, "--host", giver, "--to", taker]
        return [*words, "--config", str(self.config)]

    def holding(self) -> Holding:
        """Return who has the slice."""
        with self.hosts.server.enter():
            (found,) = self.store.holdings("fleet")
        return found


Make = Callable[..., Fleet]


@pytest.fixture
def hosts() -> Iterator[Pair]:
    with pair() as made:
        yield made


@pytest.fixture
def fleet(hosts: Pair, tmp_path: Path) -> Iterator[Make]:
    with ExitStack() as resources:
        hosts.server.tcp_server(443)
        hosts.server.udp_server(53)

        def make(address: str = SOFT, ttl_s: int = 60, store: str = "sqlite") -> Fleet:
            if store == "sqlite":
                where = StoreAddress("sqlite", str(tmp_path / "pools"))
            else:
                place = Place(SERVER, enter=hosts.server.enter)
                where = StoreAddress("etcd", endpoints=resources.enter_context(Cluster(tmp_path, [place])).endpoints)
            return Fleet(hosts, tmp_path, resources, where, address, ttl_s)

        yield make


def seconds_between(before: dict[str, Any], after: dict[str, Any]) -> float:
    first, last = (float(each["time"][-10:-1]) for each in (before, after))
    return (last - first) % 60


@pytest.mark.parametrize(("address", "store"), [(SOFT, "sqlite"), (SOFT_6, "sqlite"), (SOFT, "etcd")])
def test_flows_go_along(fleet: Make, address: str, store: str) -> None:
    if store == "etcd" and not shutil.which("etcd"):
        pytest.skip("needs etcd: apt-get install etcd-server")
    made = fleet(address, store=store)
    count = 1000 if LONG else 60
    flows = Flows(made.hosts.client, [WEB[address]], count)
    datagrams = [made.hosts.client.udp_connect((WEB[address][0], 53)) for _ in range(5)]
    assert all(map(round_trip, datagrams))
    own = made.hosts.egress["egress-a"].tcp_connect(WEB[address], src=(address, 9300))
    assert round_trip(own)
    flows.all_go_on()
    done = made.transfer("--json")
    assert done.returncode == 0, (done.stderr, *(agent.deeds() for agent in made.agents.values()))
    told = json.loads(done.stdout)
    made.hosts.go_by("egress-b")
    assert (told["flows"], told["sockets"], told["clashed"], told["left_out"]) == (count + 5, 1, 0, 0)
    assert f"{address}" in told["detail"]
    with pytest.raises(ConnectionError):
        own.recv(1)
    flows.all_go_on()
    assert all(map(round_trip, datagrams))
    fresh = made.hosts.client.tcp_connect(WEB[address])
    assert round_trip(fresh)
    assert made.holding().host == "egress-b"
    gap_s = seconds_between(made.agents["egress-a"].wait_for("closed"), made.agents["egress-b"].wait_for("taken-over"))
    longest_s = max(flow.longest_s for flow in flows.flows)
    print(
        f"{count} flows over {address}, {store}: the slice stood still for {gap_s:.3f} s, the command took "
        f"{told['took_s']} s, no flow waited longer than {longest_s:.3f} s"
    )
    flows.stop()


def test_there_and_back(fleet: Make) -> None:
    made = fleet()
    flows = Flows(made.hosts.client, [WEB[SOFT]], 20)
    for giver, taker in (EGRESS, EGRESS[::-1], EGRESS):
        done = made.transfer(giver=giver, taker=taker)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{SOFT}:9216-10239 {giver} to {taker}: 20 flows in ")
        made.hosts.go_by(taker)
        flows.all_go_on()
    flows.stop()


def test_a_taker_that_is_not_there_gets_nothing(fleet: Make) -> None:
    made = fleet()
    flows = Flows(made.hosts.client, [WEB[SOFT]], 5)
    made.agents["egress-b"].kill()
    done = made.transfer("--wait", "1")
    assert done.returncode == 1
    assert "the agent of egress-b did not answer; nothing has changed" in done.stderr
    assert made.holding().host == "egress-a"
    flows.all_go_on()
    made.agents["egress-b"].start()
    made.agents["egress-b"].wait_for("applied", count=2)
    assert made.transfer().returncode == 0
    flows.stop()


def test_a_giver_that_stands_still_gives_nothing(fleet: Make) -> None:
    made = fleet()
    flows = Flows(made.hosts.client, [WEB[SOFT]], 5)
    flows.all_go_on()  # by then the agent has finished its first step, and keeps nobody out of the store
    made.agents["egress-a"].freeze()
    done = made.transfer("--wait", "4")
    assert "the agent of egress-a did not answer; nothing has changed" in done.stderr
    flows.all_go_on()
    made.agents["egress-a"].wake()
    time.sleep(1)
    assert made.holding().host == "egress-a"
    flows.all_go_on()
    flows.stop()


def test_what_is_refused(fleet: Make) -> None:
    made = fleet(ttl_s=10)
    assert "giver and taker are the same host" in made.transfer(taker="egress-a").stderr
    assert "egress-b does not hold it" in made.transfer(giver="egress-b", taker="egress-c").stderr
    done = made.transfer("--no-flows", taker="egress-c")
    assert done.returncode == 0
    made.agents["egress-a"].wait_for("lost")


@pytest.mark.parametrize("seed", range(40 if LONG else 2))
def test_agents_that_are_killed_in_the_middle(fleet: Make, seed: int) -> None:
    """Whatever moment one is killed at: once it runs again somebody has the slice, and all flows go on there."""
    chance = random.Random(seed)
    made = fleet()
    flows = Flows(made.hosts.client, [WEB[SOFT]], 10)
    victim = made.agents[EGRESS[seed % 2]]
    moving = made.start_transfer("--wait", "5")
    wait_until(made.store.moves.under_way)
    time.sleep(chance.uniform(0, 0.8))
    victim.kill()
    time.sleep(chance.uniform(0, 0.5))
    victim.start()
    moving.communicate(timeout=60)
    wait_until(lambda: all(move.stage.is_last for move in made.store.moves.under_way()), "the end of the move")
    holder = made.holding()
    assert not holder.resting
    made.hosts.go_by(holder.host)
    flows.all_go_on()
    flows.stop()


def test_a_store_that_falls_silent_in_the_middle(fleet: Make) -> None:
    made = fleet(ttl_s=20)
    flows = Flows(made.hosts.client, [WEB[SOFT]], 5)
    giver = made.agents["egress-a"]
    with sqlite3.connect(made.directory / "pools", isolation_level=None) as database:
        moving = made.start_transfer()
        wait_until(lambda: "closed" in map(itemgetter("event"), giver.deeds()) or made.store.moves.under_way())
        with suppress(sqlite3.OperationalError):
            database.execute("BEGIN IMMEDIATE")
            time.sleep(5)
            database.execute("ROLLBACK")
        moving.communicate(timeout=60)
    wait_until(lambda: all(move.stage.is_last for move in made.store.moves.under_way()), "the end of the move")
    assert not made.agents[made.holding().host].ended()
    made.hosts.go_by(made.holding().host)
    flows.all_go_on()
    flows.stop()


def test_by_hand(fleet: Make) -> None:
    made = fleet()
    flows = Flows(made.hosts.client, [WEB[SOFT]], 20)
    for agent in made.agents.values():
        agent.kill()
    held = made.hosts.natctl(
        "egress-a", "pool", "renew", "fleet", "--host", "egress-a", "--toml", "--config", made.config
    )
    path = made.directory / "by-hand.toml"
    path.write_text(made.config.read_text() + "\n" + held.stdout)
    state = ("--state", made.directory / "egress-a.state")
    made.hosts.natctl("egress-a", "apply", "--config", made.config, *state)
    listed = made.hosts.natctl("egress-a", "flows", "--slice", f"fleet.{SOFT}.9216", "--json", "--config", path)
    made.hosts.natctl("egress-b", "remove", "--config", path, "--state", made.directory / "egress-b.state")
    taken = made.hosts.natctl("egress-b", "pool", "accept", "--config", path, input=listed.stdout)
    assert taken.stdout == "20 taken, 0 sockets, 0 clashed\n"
    made.hosts.natctl("egress-b", "apply", "--config", path, "--state", made.directory / "egress-b.state")
    made.hosts.go_by("egress-b")
    flows.all_go_on()
    flows.stop()


def test_what_is_not_accepted(hosts: Pair, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('version = 1\n[[slice]]\nname = "ams-1"\naddress = "198.51.100.10"\nports = ["9000-9009"]\n')
    flow: dict[str, Any] = {
        "protocol": "tcp", "state": "ESTABLISHED", "timeout_s": 100, "status": ["seen-reply", "src-nat"],
        "original": {"src": "10.0.0.2", "sport": 4000, "dst": SERVER, "dport": 443},
        "reply": {"src": SERVER, "sport": 443, "dst": SOFT, "dport": 9000},
    }  # fmt: skip

    def told(*flows: object) -> str:
        lines = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in flows)
        done = hosts.natctl("egress-b", "pool", "accept", "--config", path, input=lines, check=False)
        assert done.returncode == 1
        return done.stderr

    outside = flow | {"reply": {"src": SERVER, "sport": 443, "dst": SOFT, "dport": 9010}}
    assert "take flows: it is not rewritten into a slice of this host: 'tcp 10.0.0.2:4000" in told(flow, outside)
    assert "is not rewritten" in told(flow | {"reply": {"src": SERVER, "sport": 443, "dst": "10.0.0.2", "dport": 4000}})
    assert "read flows: line 2: no flow of natctl flows --json" in told(flow, "{")
    assert "line 1: a flow without reply" in told({key: value for key, value in flow.items() if key != "reply"})
    assert "status 'nonsense'" in told(flow | {"status": ["nonsense"]})
    assert "state None of tcp" in told(flow | {"state": None})
    assert "expected a number up to 65535" in told(flow | {"original": flow["original"] | {"sport": 70000}})
    assert hosts.natctl("egress-b", "flows", "--config", path, "--address", "10.0.0.2").stdout == ""
