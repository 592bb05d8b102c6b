"""A ``natctl agent`` on a host of a lab: started, frozen, killed, started again; and what it has told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nat_rewriter.errors import NatctlError
from netns_lab.host import Host


class RunningAgent:
    """The agent of one host. What it tells goes to a file beside its configuration."""

    def __init__(self, host: Host, name: str, config: Path, options: tuple[str, ...] = ()) -> None:
        self._host, self.name = host, name
        self._told, self._warned = config.with_suffix(".jsonl"), config.with_suffix(".err")
        state = config.with_suffix(".state")
        words = ["agent", "--json", "--host", name, "--config", str(config), "--state", str(state), *options]
        self._command = [sys.executable, "-m", "nat_rewriter", *words]
        self._process: subprocess.Popen[str] | None = None
        self._before = 0

    def start(self) -> None:
        """Run it; it takes up what is there of an earlier one."""
        self._before = len(self.deeds())
        with self._told.open("a") as told, self._warned.open("a") as warned:
            self._process = self._host.popen(self._command, stdout=told, stderr=warned)

    def freeze(self) -> None:
        """Let it stand still, with the processes that it has started."""
        for pid in self._family():
            os.kill(pid, signal.SIGSTOP)

    def wake(self) -> None:
        """Let it go on."""
        for pid in self._family():
            os.kill(pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it at once."""
        process = self._running()
        process.kill()
        process.wait()

    def reload(self) -> None:
        """Have it read its configuration again."""
        self._running().send_signal(signal.SIGHUP)

    def terminate(self) -> None:
        """Ask it to give everything back, and to end."""
        self._running().terminate()

    def wait(self, patience_s: float = 30.0) -> int:
        """Return its exit code, once it has ended."""
        return self._running().wait(patience_s)

    def ended(self) -> bool:
        """Tell whether it has ended, or was never started."""
        return self._process is None or self._process.poll() is not None

    def end(self) -> None:
        """End it at once, if it has not ended."""
        if not self.ended():
            self.kill()

    def ready(self) -> bool:
        """Tell whether it has applied since it was started last: its fence is up by then."""
        return any(deed["event"] == "applied" for deed in self.deeds()[self._before :])

    def deeds(self) -> list[dict[str, Any]]:
        """Return all that it has told, in order; whoever follows one host counts from there."""
        text = self._told.read_text() if self._told.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def warnings(self) -> str:
        """Return the last that it has complained of."""
        return self._warned.read_text()[-2000:] if self._warned.exists() else ""

    def wait_for(self, event: str, after: int = 0, patience_s: float = 60.0, count: int = 1) -> dict[str, Any]:
        """Return the last of so many deeds of a kind after so many deeds. Raises NatctlError where it does not come."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [deed for deed in self.deeds()[after:] if deed["event"] == event]
            return len(found) >= count or self.ended()

        wait_until(there, patience_s)
        if len(found) < count:  # it has ended, or takes too long
            told = f"it told {event} {len(found)} times in {patience_s} s, not {count} times"
            raise NatctlError("wait for agent", f"{told}; {self.warnings()}", self.name)
        return found[count - 1]

    def _family(self) -> list[int]:
        pid = self._running().pid
        children = [each.read_text().split() for each in Path(f"/proc/{pid}/task").glob("*/children")]
        return [pid, *(int(child) for of_thread in children for child in of_thread)]

    def _running(self) -> subprocess.Popen[str]:
        process = self._process
        if process is None or process.poll() is not None:
            raise NatctlError("signal agent", f"it does not run; {self.warnings()}", self.name)
        return process


def wait_until(met: Callable[[], bool], patience_s: float) -> bool:
    """Look again and again; tell whether it was met in time."""
    end = time.monotonic() + patience_s
    while not met():
        if time.monotonic() >= end:
            return False
        time.sleep(0.1)
    return True
