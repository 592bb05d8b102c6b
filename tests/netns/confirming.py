"""An egress host on which a change waits to be confirmed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from operating import NATCTL, listing, unordered
from waiting import wait_until

from nat_rewriter.kernel.confirm_socket import is_waiting
from netns_lab import Lab
from netns_lab.namespaces import processes_in


@dataclass(frozen=True)
class Site:
    """An egress host with a table applied, and a configuration that waits to follow it."""

    lab: Lab
    config: Path
    before: str

    def is_waiting(self) -> bool:
        with self.lab.egress.enter():
            return is_waiting("natctl")

    def start(self, seconds: float, *options: str, **popen: object) -> subprocess.Popen[str]:
        """Start the apply, and return once the change waits to be confirmed."""
        command = [*NATCTL, "apply", "--config", self.config, "--confirm", str(seconds), *options]
        process = self.lab.egress.popen(command, **popen)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("table inet natctl: ")  # printed when the time has begun to run
        assert self.is_waiting()
        assert self.has_changed()
        return process

    def has_changed(self) -> bool:
        return unordered(listing(self.lab)) != unordered(self.before)

    def wait_for_before(self) -> None:
        wait_until(lambda: not self.has_changed(), "the table is what it was")
        wait_until(lambda: not self.is_waiting(), "nothing waits")
        wait_until(lambda: not self.guardians(), "the guardian has ended")

    def guardians(self) -> list[int]:
        """Return the processes inside the namespace of the egress host."""
        return list(processes_in(Path("/run/netns", self.lab.egress.name)))

    def natctl(self, *arguments: str | Path, expect: int | None = None) -> str:
        done = self.lab.natctl(*arguments, expect=expect)
        return done.stdout + done.stderr


CHANGES = {
    "an update": ({}, {}),
    "a rebuild": ({}, {"guard": "count"}),
    "a rebuild of a table with timeouts": ({"coexist": "refuse"}, {"coexist": "off"}),
    "a first apply": (None, {}),
}
MORE = '[[dnat]]\nname = "in"\nslice = "ams-1"\nports = ["9001"]\nto = "10.0.0.2"\n'
DNAT = '[[dnat]]\nname = "other"\nslice = "ams-1"\nports = ["9002"]\nto = "10.0.0.2"\n'


@contextmanager
def changing(lab: Lab, change: str = "a rebuild") -> Iterator[Site]:
    """Prepare one of the changes, and leave nothing of it that waits."""
    old, new = CHANGES[change]
    if old is not None:
        lab.natctl("apply", "--config", lab.config(extra=DNAT, **old), expect=0)
    extra = DNAT + MORE if change == "an update" else DNAT
    site = Site(lab, lab.config(extra=extra, **new), listing(lab))
    yield site
    for pid in site.guardians():
        os.kill(pid, signal.SIGKILL)
