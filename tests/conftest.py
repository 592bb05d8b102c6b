"""For all tests: where everything must run, a skip is a failure; and nothing of a lab may be left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# A shell lets what it starts in the background ignore SIGINT, and so would every natctl that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

REQUIRE_ALL = "NATCTL_REQUIRE_ALL"


def _fail_skipped(report: Any) -> None:
    """Turn a skip into a failure that keeps the reason; an expected failure stays one."""
    if os.environ.get(REQUIRE_ALL) and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{REQUIRE_ALL} is set, but: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    _fail_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    report = yield
    _fail_skipped(report)
    return report


@pytest.fixture(scope="session", autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let natctl keep generations beside the tests, not where the host's are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATCTL_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail at the end of the run when a lab of this process still stands."""
    yield
    from netns_lab.lab import list_all
    from netns_lab.namespaces import maker
    from netns_lab.state import Process

    left = [name for name in list_all() if maker(name) == Process(os.getpid())]
    assert not left, f"labs were left behind, natctl lab down NAME takes them away: {left}"
