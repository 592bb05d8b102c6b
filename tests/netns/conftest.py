"""Labs for the tests on a real kernel. They run as root, or through ``python -m netns_lab.enter -- pytest``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from netns_lab import Lab
from netns_lab.enter import missing_privilege

if TYPE_CHECKING:
    from leasing import Desk

    from netns_lab.servers import TcpServer

LabFactory = Callable[..., Lab]


@pytest.fixture(scope="session", autouse=True)
def _permitted() -> None:
    """Skip all tests on the kernel where no network namespace can be made."""
    if missing := missing_privilege():
        pytest.skip(f"needs {missing}: run ./dev test, or python -m netns_lab.enter -- python -m pytest")


@pytest.fixture
def lab_factory(_permitted: None) -> Iterator[LabFactory]:
    """Make labs with ``lab_factory(slices=…, clients=…)``; all are taken away after the test."""
    with ExitStack() as labs:
        yield lambda **options: labs.enter_context(Lab(**options))


@pytest.fixture
def lab(lab_factory: LabFactory) -> Lab:
    """A fresh lab with one client and the default slices: ports 9000-9009, IPv4 and IPv6."""
    return lab_factory()


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for the generations of this test alone."""
    monkeypatch.setenv("NATCTL_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture(scope="module")
def lease_lab(_permitted: None) -> Iterator[Lab]:
    """A lab with natctl applied, for all tests of leases in a module."""
    from leasing import shared_lab

    with shared_lab() as lab:
        yield lab


@pytest.fixture
def at(lease_lab: Lab) -> Iterator[Desk]:
    """A lessor on the egress host of that lab, with a destination of its own."""
    from leasing import desk

    with desk(lease_lab) as opened:
        yield opened


@pytest.fixture
def fleet(lab_factory: LabFactory) -> Lab:
    """A lab whose upstream lets all ports of a pool through, whichever of them its egress host holds."""
    from pooling import SOFT

    lab = lab_factory(slices=[f"{SOFT}:9216-10239"])
    lab.server.tcp_server(443)
    lab.server.udp_server(53)
    return lab


@pytest.fixture
def network_of_proxies(_permitted: None) -> Iterator[None]:
    """Be in a network namespace with slices, and servers for proxies to connect to."""
    from proxying import proxy_network

    with proxy_network():
        yield


@pytest.fixture
def proxied_server(network_of_proxies: None) -> Iterator[TcpServer]:
    """An echo server in that network."""
    from proxying import echo_server

    with echo_server() as server:
        yield server
