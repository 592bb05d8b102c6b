"""``natctl watch`` as a service: ready, alive, reloaded and stopped, as a service manager sees it."""

from __future__ import annotations

import os
import pty
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from operating import outcomes

from netns_lab import Lab
from netns_lab.host import end_process

PATIENCE_S = 30.0
WATCHDOG_S = 1.5
MORE = '[[slice]]\nname = "more"\naddress = "198.51.100.11"\nports = ["9100-9109"]\n'


class Managed:
    """A watch, started as systemd would start it, and what it tells its manager."""

    def __init__(self, lab: Lab, config: Path, address: str, *options: str) -> None:
        with lab.egress.enter():  # an abstract name belongs to the network namespace of the service
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0"))
        command = [sys.executable, "-m", "nat_rewriter", "watch", "--json", "--config", config, *options]
        variables = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
        self.process = lab.egress.popen(command, env=os.environ | variables)

    def next(self, begins: str, patience_s: float = PATIENCE_S) -> list[str]:
        """Return the lines of the next message that begins so; what comes before it is passed over."""
        until = time.monotonic() + patience_s
        while True:
            self.socket.settimeout(max(0.01, until - time.monotonic()))
            lines = self.socket.recv(4096).decode().split("\n")
            if lines[0] == begins:
                return lines

    def hang_up(self) -> list[str]:
        """Ask for a reload, and return how it ended."""
        self.process.send_signal(signal.SIGHUP)
        assert self.next("RELOADING=1")[1].startswith("MONOTONIC_USEC=")
        return self.next("READY=1")


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    name = f"natctl-test-{os.getpid()}-{secrets.token_hex(4)}"
    return f"@{name}" if request.param == "abstract" else str(tmp_path / "notify")


@pytest.fixture
def config(lab: Lab) -> Path:
    lab.server.tcp_server(443)
    path = lab.config()
    lab.natctl("apply", "--config", path, expect=0)
    return path


@pytest.fixture
def managed(lab: Lab, config: Path, address: str) -> Iterator[Managed]:
    service = Managed(lab, config, address)
    try:
        yield service
    finally:
        end_process(service.process)
        service.socket.close()


def test_a_service_from_its_start_to_its_end(managed: Managed, config: Path, lab: Lab) -> None:
    slices = len(lab.slices)
    assert managed.next("READY=1") == ["READY=1", f"STATUS=watching {slices} slices of {config}"]
    for _ in range(3):
        assert managed.next("WATCHDOG=1", 10 * WATCHDOG_S) == ["WATCHDOG=1"]
    before = config.read_text()

    config.write_text(before + MORE)
    assert managed.hang_up() == ["READY=1", f"STATUS=watching {slices + 1} slices of {config}"]
    config.write_text(before.replace("version = 1", "version = 2\nnonsense = true"))
    assert managed.hang_up() == [
        "READY=1", f"STATUS=watching {slices + 1} slices of {config}; reload failed, see the log"
    ]  # fmt: skip
    config.write_text(before.replace("[controller]", '[controller]\ntable = "other"'))
    assert managed.hang_up()[1].endswith("; reload failed, see the log")
    managed.next("WATCHDOG=1", 10 * WATCHDOG_S)

    managed.process.terminate()
    assert managed.next("STOPPING=1") == ["STOPPING=1"]
    _, told = managed.process.communicate(timeout=PATIENCE_S)
    assert managed.process.returncode == 0
    assert f"natctl: reloaded: watching {slices + 1} slices of {config}\n" in told
    assert told.count("natctl: reload failed, the configuration before stays in force: ") == 2
    assert "nonsense" in told
    assert "reload: another table needs a restart: 'other'" in told


def test_a_watch_that_applies_has_its_configuration_in_force(lab: Lab, tmp_path: Path) -> None:
    config = lab.config()
    service = Managed(lab, config, str(tmp_path / "notify"), "--apply", "--only", "ruleset-drift")
    before = config.read_text()
    try:
        service.next("READY=1")
        lab.natctl("diff", "--config", config, expect=0)
        for text in (before + MORE, before + MORE.replace("9109", "9107"), before.replace('"drop"', '"count"')):
            config.write_text(text)
            assert "failed" not in service.hang_up()[1]
            lab.natctl("diff", "--config", config, expect=0)
        in_force = lab.egress.run(["nft", "list", "table", "inet", "natctl"]).stdout
        config.write_text("nonsense = true")
        assert service.hang_up()[1].endswith("; reload failed, see the log")
        assert lab.egress.run(["nft", "list", "table", "inet", "natctl"]).stdout == in_force
        service.process.terminate()
        found, told = service.process.communicate(timeout=PATIENCE_S)
    finally:
        end_process(service.process)
        service.socket.close()
    assert found == ""  # at no time was anything in force but what it watched by
    applied = re.findall(r"^natctl: applied: generation (\d+), in force within \d+ ms$", told, re.MULTILINE)
    assert applied == ["1", "2", "3", "4"]
    assert [action for _, action, _ in outcomes(lab)] == ["create", "update", "update", "rebuild"]


def test_what_a_reload_changes_is_seen_and_the_rest_is_not_told_again(lab: Lab, config: Path, tmp_path: Path) -> None:
    """A slice that only the new configuration has; and a finding that both have."""
    service = Managed(lab, config, str(tmp_path / "notify"), "--only", "ruleset-drift,ephemeral-overlap")
    lab.egress.sysctl("net.ipv4.ip_local_port_range", "9005 60999")
    try:
        service.next("READY=1")
        before = config.read_text()
        assert service.process.stdout
        opened = {service.process.stdout.readline() for _ in lab.slices}
        assert len(opened) == len(lab.slices)
        config.write_text(before + MORE)
        service.hang_up()
        added = [service.process.stdout.readline() for _ in range(2)]
        assert sum('"ruleset-drift"' in line for line in added) == 1, added
        assert sum('"more"' in line and '"ephemeral-overlap"' in line for line in added) == 1, added
        config.write_text(before)
        service.hang_up()
        closed = [service.process.stdout.readline() for _ in range(2)]
        assert all('"closed"' in line for line in closed), closed
        service.process.terminate()
        rest, _ = service.process.communicate(timeout=PATIENCE_S)
        assert rest == ""
    finally:
        end_process(service.process)
        service.socket.close()


def test_events_go_on_through_a_reload_and_so_does_a_history(lab: Lab, config: Path, tmp_path: Path) -> None:
    history = tmp_path / "history"
    service = Managed(lab, config, str(tmp_path / "notify"), "--record", str(history))
    try:
        service.next("READY=1")
        lab.client.tcp_connect(("203.0.113.1", 443))
        config.write_text(config.read_text() + MORE)
        service.hang_up()
        lab.client.tcp_connect(("203.0.113.1", 443))
        time.sleep(1)
        service.process.terminate()
        assert service.process.wait(PATIENCE_S) == 0
    finally:
        end_process(service.process)
        service.socket.close()
    answer = lab.natctl("history", "198.51.100.10", "--record", history, "--json", expect=0)
    assert len(set(re.findall(r'"id": \d+', answer.stdout))) == 2  # the first is in either part of the history


@pytest.mark.parametrize("terminal", [True, False], ids=["at a terminal", "without one"])
def test_hanging_up_ends_a_watch_at_a_terminal_alone(terminal: bool, lab: Lab, config: Path) -> None:
    command = [sys.executable, "-m", "nat_rewriter", "watch", "--json", "--config", config]
    if terminal:
        # The new session has the terminal that it opens first.
        program = f"import os; os.open({os.ttyname(pty.openpty()[1])!r}, os.O_RDWR); os.execv({sys.executable!r}, "
        command = [sys.executable, "-c", f"{program}{list(map(str, command))!r})"]
    process = lab.egress.popen(command, start_new_session=True, stdin=subprocess.DEVNULL)
    try:
        assert process.stdout
        lab.egress.sysctl("net.ipv4.ip_local_port_range", "9005 60999")
        assert '"ephemeral-overlap"' in process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        if terminal:
            assert process.wait(PATIENCE_S) == -signal.SIGHUP
        else:
            assert process.stderr
            assert process.stderr.readline().startswith("natctl: reloaded: ")
    finally:
        end_process(process)
