"""A pool that is changed under a running agent: it says so, uses nothing that it may not, and keeps what it has."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from pooling import SOFT, works
from waiting import wait_until

from nat_rewriter.model.pools import Pool, StoreAddress
from nat_rewriter.model.slices import PortRange
from nat_rewriter.pool import PoolStore, open_store
from netns_lab import Lab
from netns_lab.running_agent import RunningAgent

POOL = Pool("fleet", (ip_address(SOFT),), PortRange(9216, 10239), 256, ttl_s=10, hold_down_s=1)
CONFIG = """version = 1
[[pool]]
name = "fleet"
addresses = ["198.51.100.10"]
ports = "9216-10239"
slice_size = 256
ttl_s = 10
hold_down_s = 1
least = {least}
[store]
url = "sqlite:{store}"
[[snat]]
name = "clients"
source = ["10.0.0.0/24"]
pools = ["fleet"]
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PoolStore]:
    with open_store(StoreAddress("sqlite", str(tmp_path / "pools"))) as opened:
        opened.define(POOL)
        yield opened


@pytest.fixture
def config(tmp_path: Path, store: PoolStore) -> Path:
    path = tmp_path / "natctl.toml"
    path.write_text(CONFIG.format(least=1, store=tmp_path / "pools"))
    return path


@pytest.fixture
def agent(fleet: Lab, config: Path) -> Iterator[RunningAgent]:
    running = RunningAgent(fleet.egress, "egress", config)
    running.start()
    try:
        running.wait_for("acquired")
        wait_until(lambda: works(fleet))
        yield running
    finally:
        running.end()


def test_a_pool_that_is_gone(fleet: Lab, agent: RunningAgent, store: PoolStore, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "pools") as database:
        database.execute("DELETE FROM pool")
    assert "there is no such pool in the store" in agent.wait_for("failed")["detail"]
    wait_until(lambda: not works(fleet))  # its term has ended, in the kernel
    store.define(POOL)
    wait_until(lambda: works(fleet))


def test_a_pool_that_got_another_address(fleet: Lab, agent: RunningAgent, store: PoolStore, config: Path) -> None:
    store.define(replace(POOL, addresses=(*POOL.addresses, ip_address("198.51.100.11"))))
    config.write_text(config.read_text().replace("least = 1", "least = 2"))
    agent.reload()
    refused = agent.wait_for("refused")
    assert "the store has other terms than the configuration (natctl pool show)" in refused["detail"]
    assert works(fleet)
    assert [each.host for each in store.holdings("fleet")] == ["egress"]
    assert "lost" not in {deed["event"] for deed in agent.deeds()}


def test_terms_that_got_shorter(fleet: Lab, agent: RunningAgent, store: PoolStore) -> None:
    store.define(replace(POOL, ttl_s=6))
    time.sleep(8)
    assert works(fleet)
    assert store.holdings("fleet")[0].left_s <= 6
    assert "lost" not in {deed["event"] for deed in agent.deeds()}
    agent.freeze()
    wait_until(lambda: all(each.resting for each in store.holdings("fleet")))
    assert not works(fleet)  # by the time that the store lets go, the kernel has stopped
    agent.wake()


def test_a_file_with_other_terms_is_not_followed(
    fleet: Lab, agent: RunningAgent, store: PoolStore, config: Path
) -> None:
    before, text = [each.block for each in store.holdings("fleet")], config.read_text()
    others = {
        "slice_size = 256": "slice_size = 512", "ttl_s = 10": "ttl_s = 20", "hold_down_s = 1": "hold_down_s = 2",
        '"9216-10239"': '"9216-9727"', '["198.51.100.10"]': '["198.51.100.11"]', "ttl_s = 10\n": "per_host = 2\n",
    }  # fmt: skip
    for number, (old, new) in enumerate(others.items(), 1):
        config.write_text(text.replace(old, new, 1))
        agent.reload()
        wait_until(lambda count=number: agent.warnings().count("reload failed") == count, new)
    assert agent.warnings().count("other pools need a restart of the agent") == len(others)
    time.sleep(POOL.ttl_s + 1)
    assert works(fleet)
    assert [each.block for each in store.holdings("fleet")] == before
    assert not {"lost", "failed"} & {deed["event"] for deed in agent.deeds()}


def test_an_agent_that_is_started_with_another_slice_size_uses_nothing(
    fleet: Lab, agent: RunningAgent, store: PoolStore, config: Path
) -> None:
    before, text = [each.block for each in store.holdings("fleet")], config.read_text()
    agent.kill()
    config.write_text(text.replace("slice_size = 256", "slice_size = 512"))
    told = len(agent.deeds())
    agent.start()
    assert "held and not used" in agent.wait_for("failed", told)["detail"]
    assert "the store has other terms than the configuration" in agent.wait_for("refused", told)["detail"]
    assert not works(fleet)
    agent.kill()
    config.write_text(text)
    agent.start()
    wait_until(lambda: works(fleet))
    assert [each.block for each in store.holdings("fleet")] == before
