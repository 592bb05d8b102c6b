"""An etcd whose leader stands still for longer than a term: by the kernels' own sets, no two hosts use one slice.

When it wakes it ends leases that its successor has kept alive (etcd issue 15247), as often as not; where it does not,
the test ends them, as it would have.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

import pytest

from nat_rewriter.controller.holdings import Held, Holdings
from nat_rewriter.kernel.nft import KernelNft
from nat_rewriter.model.pools import Deed, Demand, Pool, StoreAddress
from nat_rewriter.model.slices import PortRange
from nat_rewriter.pool import etcd_requests as etcd
from nat_rewriter.pool import open_store
from nat_rewriter.pool.etcd_client import EtcdClient
from nat_rewriter.pool.etcd_faults import ends_leases_early
from netns_lab.etcd_cluster import Cluster, Place
from netns_lab.host import TOOL_PATH
from netns_lab.running_agent import RunningAgent, wait_until
from netns_lab.segment import SHARED, Segment, segment

TTL_S = 5
POOL = Pool("fleet", (ip_address(SHARED),), PortRange(9216, 10239), 1024, ttl_s=TTL_S, hold_down_s=0)
STORE = "192.0.2.1"
FREEZES, PATIENCE_S = 2, 60.0
CONFIG = """version = 1
[[pool]]
name = "fleet"
addresses = ["198.51.100.10"]
ports = "9216-10239"
slice_size = 1024
ttl_s = 5
hold_down_s = 0
[store]
url = "etcd:{endpoints}"
timeout_s = 1
[[snat]]
name = "clients"
source = ["10.0.0.0/24"]
pools = ["fleet"]
"""


@pytest.fixture
def lab() -> Iterator[Segment]:
    if missing := [name for name in ("etcd", "etcdctl") if not shutil.which(name)]:
        pytest.skip(f"needs {' and '.join(missing)}: apt-get install etcd-server etcd-client")
    with segment(2) as made:
        yield made


@pytest.fixture
def cluster(lab: Segment, tmp_path: Path) -> Iterator[Cluster]:
    lab.upstream.run(["ip", "link", "set", "lo", "up"])
    places = [Place(STORE, 2379 + 10 * number, 2380 + 10 * number, lab.upstream.enter) for number in range(3)]
    with Cluster(tmp_path, places) as three:
        yield three


@pytest.fixture
def address(cluster: Cluster, lab: Segment) -> Iterator[StoreAddress]:
    """Where the store is, for this thread, which stays with it."""
    address = StoreAddress("etcd", endpoints=cluster.endpoints, timeout_s=1)
    with lab.upstream.enter():
        with open_store(address) as store:
            store.define(POOL)
        yield address


@pytest.fixture
def user(lab: Segment, address: StoreAddress, tmp_path: Path) -> Iterator[RunningAgent]:
    """An agent that has the one slice of the pool."""
    config = tmp_path / "h0.toml"
    config.write_text(CONFIG.format(endpoints=",".join(f"{host}:{port}" for host, port in address.endpoints)))
    running = RunningAgent(lab.hosts[0], "h0", config)
    running.start()
    try:
        running.wait_for("acquired")
        yield running
    finally:
        running.end()


class Taker:
    """A host that takes the slice the moment that it can be had, and uses it the moment that it may."""

    def __init__(self, lab: Segment, address: StoreAddress) -> None:
        self.deeds = list[Deed]()
        self._store = open_store(address)
        with lab.hosts[1].enter():
            self._holdings = Holdings({POOL: Demand()}, "natctl", self._store, "h1", self.deeds.append)
            self._holdings.raise_fence()

    @property
    def held(self) -> Held:
        return self._holdings.of_pools[0]

    def step(self) -> None:
        if self.held.until:
            self._holdings.renew_all()
        else:
            self._holdings.take(self.held, 1)

    def told(self, what: str) -> bool:
        return any(deed.what == what for deed in self.deeds)

    def close(self) -> None:
        self._holdings.close()
        self._store.close()


class Witness:
    """Sees in the kernels of both hosts who lets packets from the slice through."""

    def __init__(self, lab: Segment, resources: ExitStack) -> None:
        self._kernels = list[KernelNft]()
        for host in lab.hosts:
            with host.enter():
                self._kernels.append(resources.enter_context(KernelNft()))

    def users(self) -> list[int]:
        """Return the hosts that use the slice, both only where they do so at one moment."""
        before, other, after = self._uses(0), self._uses(1), self._uses(0)
        return [0] * (before and after) + [1] * other

    def _uses(self, number: int) -> bool:
        sets = [each["set"] for each in self._kernels[number].list_objects("list ruleset") if "set" in each]
        return any(each.get("elem") for each in sets if each["name"] in ("held4a", "held4b"))


def end_leases(lab: Segment, address: StoreAddress, host: str) -> None:
    """End the leases of a host that goes on using what it has."""
    client = EtcdClient(address)
    (found,) = client.read([etcd.key(f"natctl/host/fleet/{host}")]).found
    client.close()
    endpoints = ",".join(f"{place}:{port}" for place, port in address.endpoints)
    for kind in ("short", "long"):
        lease = json.loads(found[0].value)[kind]
        command = ["etcdctl", "--endpoints", endpoints, "lease", "revoke", f"{lease:x}"]
        lab.upstream.run(command, env={"PATH": TOOL_PATH, "ETCDCTL_API": "3"})


def test_no_two_use_a_slice_of_which_etcd_let_go(
    lab: Segment, cluster: Cluster, address: StoreAddress, user: RunningAgent
) -> None:
    with ExitStack() as resources:
        witness, taker = Witness(lab, resources), Taker(lab, address)
        resources.callback(taker.close)
        assert wait_until(lambda: witness.users() == [0], PATIENCE_S)

        def watch(seconds: float) -> set[int]:
            """Let the taker try, and see to it that never both use the slice; return who did."""
            seen, end = set[int](), time.monotonic() + seconds
            while time.monotonic() < end:
                taker.step()
                users = witness.users()
                assert len(users) < 2, (taker.deeds, user.deeds())
                seen.update(users)
            return seen

        for _ in range(FREEZES):
            leader = cluster.leader()
            leader.freeze()
            try:
                watch(TTL_S + 1.5)
            finally:
                leader.wake()
            watch(1.5)
            if taker.told("acquired"):
                break
        else:
            end_leases(lab, address, "h0")
        end = time.monotonic() + PATIENCE_S
        while 1 not in watch(0.5):
            assert time.monotonic() < end, (taker.deeds, user.deeds())
        watch(1)
    assert taker.told("quarantined")
    assert taker.told("usable")
    assert "before its term ended" in user.wait_for("lost")["detail"]


def test_the_agent_warns_of_such_an_etcd(address: StoreAddress, user: RunningAgent) -> None:
    client = EtcdClient(address)
    faulty = any(map(ends_leases_early, client.versions().values()))
    client.close()
    user.wait_for("applied")
    warned = "etcd may end the terms of hosts early"
    assert wait_until(lambda: user.warnings().count(warned) == int(faulty), PATIENCE_S)
