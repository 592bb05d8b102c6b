"""A look that begins before the program is imported finds what any other finds, and is given up without harm."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import pytest
from own_network import own_network

from nat_rewriter.config import read_policy
from nat_rewriter.controller.gathering import Tables, read_tables
from nat_rewriter.kernel.conntrack import FLOW_DTYPE, insert_flow
from nat_rewriter.kernel.head_start import HeadStart
from nat_rewriter.model.findings import Kind
from nat_rewriter.model.tuples import FlowTuple

CLIENT, SOFT, SERVER = "10.0.0.2", "198.51.100.10", "203.0.113.1"
FLOWS = 3000
CONFIG = f'version = 1\n[[slice]]\nname = "ams-1"\naddress = "{SOFT}"\nports = ["9000-9009"]\nprotocols = ["tcp"]\n'
POLICY = read_policy(CONFIG.encode())


@pytest.fixture
def flows() -> Iterator[None]:
    """A namespace with some hundred datagrams of flows, a few of them from the soft-unicast address."""
    with own_network(f"{SOFT}/32"):
        for number in range(FLOWS):
            source = ip_address(SOFT if number % 1000 == 0 else CLIENT)
            insert_flow(FlowTuple("tcp", source, 10000 + number, ip_address(SERVER), 443), 600)
        yield


def _told(tables: Tables) -> tuple[int, list[int]]:
    """Return how many flows there are, and the ports of those that were kept."""
    assert tables.sieve
    return tables.sieve.flows, sorted(np.frombuffer(tables.flows, FLOW_DTYPE)["orig_sport"].tolist())


def test_a_look_that_began_before_finds_the_same(flows: None) -> None:
    begun = HeadStart()
    time.sleep(0.1)  # the kernel's answer waits
    early, usual = read_tables(POLICY, Kind, begun), read_tables(POLICY, Kind)
    assert _told(early) == _told(usual) == (FLOWS, [10000, 11000, 12000])


def test_it_is_taken_once_and_begun_again_after_that(flows: None) -> None:
    begun = HeadStart()
    assert _told(read_tables(POLICY, Kind, begun)) == _told(read_tables(POLICY, Kind, begun))


@pytest.mark.parametrize(("text", "code"), [(CONFIG, 3), ("version = 2\n", 2)])
def test_check_ends_as_it_does_without(flows: None, tmp_path: Path, text: str, code: int) -> None:
    config = tmp_path / "natctl.toml"
    config.write_text(text)
    natctl = [sys.executable, "-m", "nat_rewriter", "check"]
    early = subprocess.run([*natctl, "--config", config], capture_output=True, timeout=60)
    usual = subprocess.run([*natctl, "--netns=/proc/self/ns/net", "--config", config], capture_output=True, timeout=60)
    assert early.returncode == usual.returncode == code
    assert (early.stdout, early.stderr) == (usual.stdout, usual.stderr)
