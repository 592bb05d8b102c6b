"""One suite for whatever keeps or does a thing: the fake and the real nftables, each store of pools."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from nat_rewriter.controller import intent
from nat_rewriter.kernel.netns import entered
from nat_rewriter.kernel.nft import KernelNft, Nft
from nat_rewriter.model.pools import StoreAddress
from nat_rewriter.testing import FakeNft
from netns_lab import namespaces
from netns_lab.enter import missing_privilege
from netns_lab.etcd_cluster import etcd_server


@pytest.fixture
def namespace() -> Iterator[str]:
    """Be in a fresh network namespace for the test."""
    if missing := missing_privilege():
        pytest.skip(f"needs {missing}: run ./dev test, or python -m netns_lab.enter -- python -m pytest")
    name = namespaces.namespace_name(namespaces.unique_name("contract"))
    namespaces.create(name)
    try:
        with entered(name):
            yield name
    finally:
        namespaces.delete(name)


@pytest.fixture
def kernel_nft(namespace: str) -> Iterator[KernelNft]:
    """The nftables of a fresh network namespace."""
    with KernelNft() as nft:
        yield nft


@pytest.fixture(params=["fake", "kernel"])
def nft(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Nft:
    """Each nftables in turn."""
    if request.param == "fake":
        # The fakes of tests that run side by side share the network namespace, and with it the lock.
        monkeypatch.setattr(intent, "table_lock", lambda table: nullcontext())
        return FakeNft()
    found: Nft = request.getfixturevalue("kernel_nft")
    return found


@pytest.fixture(scope="session")
def etcd_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where a real etcd answers."""
    if not shutil.which("etcd"):
        pytest.skip("needs etcd: apt-get install etcd-server")
    with etcd_server(tmp_path_factory.mktemp("etcd")) as port:
        yield port


@pytest.fixture(params=["sqlite", "etcd"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> StoreAddress:
    """Where an empty store is."""
    if request.param == "sqlite":
        return StoreAddress("sqlite", str(tmp_path / "pools.sqlite"))
    port = request.getfixturevalue("etcd_port")
    return StoreAddress("etcd", endpoints=(("127.0.0.1", port),), prefix=f"natctl-{secrets.token_hex(4)}")
