"""The protocol of sd_notify(3), spoken to a socket as a service manager has one."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nat_rewriter.errors import NatctlError
from nat_rewriter.kernel.service_manager import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """The address of a manager, and what returns the lines of its next message; none is an empty list."""
    abstract = f"@natctl-test-{os.getpid()}-{secrets.token_hex(4)}"
    address = abstract if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(address.replace("@", "\0"))
        server.setblocking(False)

        def next_message() -> list[str]:
            try:
                return server.recv(4096).decode().split("\n")
            except BlockingIOError:
                return []

        yield address, next_message


def test_what_is_told_in_the_life_of_a_service(manager: tuple[str, Callable[[], list[str]]]) -> None:
    address, next_message = manager
    environment = {"NOTIFY_SOCKET": address, "HOME": "/"}
    told = ServiceManager(environment)
    assert told.present
    assert environment == {"HOME": "/"}, "a child could speak for the service"
    told.ready("watching 1 slice")
    assert next_message() == ["READY=1", "STATUS=watching 1 slice"]
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    told.reloading()
    reloading, moment = next_message()
    assert reloading == "RELOADING=1"
    assert before <= int(moment.removeprefix("MONOTONIC_USEC=")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    told.stopping()
    assert next_message() == ["STOPPING=1"]
    told.alive()
    assert next_message() == [], "no watchdog has asked for pings"


def test_pings_come_three_in_the_time_of_the_watchdog(manager: tuple[str, Callable[[], list[str]]]) -> None:
    address, next_message = manager
    told = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "600000", "WATCHDOG_PID": str(os.getpid())})
    told.alive()
    assert next_message() == ["WATCHDOG=1"]
    told.alive()
    assert next_message() == []
    time.sleep(0.21)
    told.alive()
    assert next_message() == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    ("usec", "pid"), [("0", ""), ("", ""), ("soon", ""), ("-5", ""), ("600000", "1"), ("600000", "x")]
)
def test_a_watchdog_of_another_process_or_of_none_is_not_pinged(
    usec: str, pid: str, manager: tuple[str, Callable[[], list[str]]]
) -> None:
    address, next_message = manager
    ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}).alive()
    assert next_message() == []


def test_without_a_manager_nobody_is_told() -> None:
    told = ServiceManager({"WATCHDOG_USEC": "600000"})
    assert not told.present
    told.ready("watching")
    told.reloading()
    told.alive()
    told.stopping()


@pytest.mark.parametrize("address", ["/nonexistent/notify", "@natctl-nobody-listens", "notify", "vsock:2:1234"])
def test_a_manager_that_cannot_be_told_that_all_is_ready_is_an_error(address: str) -> None:
    told = ServiceManager({"NOTIFY_SOCKET": address})
    with pytest.raises(NatctlError, match=r"^tell service manager: ") as caught:
        told.ready("watching")
    assert address in str(caught.value)
    told.reloading()  # what can be missed is no reason to end
    told.stopping()


def test_a_manager_that_reads_nothing_holds_nobody_up(manager: tuple[str, Callable[[], list[str]]]) -> None:
    told = ServiceManager({"NOTIFY_SOCKET": manager[0]})
    for _ in range(5000):  # its queue is full long before
        told.stopping()
