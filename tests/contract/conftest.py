"""One suite for the fake and the real nftables; the real one in a network namespace of its own for each test."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from nat_rewriter.controller import intent
from nat_rewriter.kernel.netns import entered
from nat_rewriter.kernel.nft import KernelNft, Nft
from nat_rewriter.testing import FakeNft
from netns_lab import namespaces
from netns_lab.enter import missing_privilege


@pytest.fixture
def namespace() -> Iterator[str]:
    """Be in a fresh network namespace for the test."""
    if missing := missing_privilege():
        pytest.skip(f"needs {missing}: run ./dev test, or python -m netns_lab.enter -- python -m pytest")
    name = f"natctl-contract-{os.getpid()}-{secrets.token_hex(3)}"
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
