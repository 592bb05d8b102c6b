"""Labs for the tests on a real kernel. They run as root, or through ``python -m netns_lab.enter -- pytest``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from netns_lab import Lab
from netns_lab.enter import missing_privilege

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
