"""What etcd says of who holds what, as it happens: etcdctl's own watch, one on each node."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from netns_lab.host import TOOL_PATH, Host, end_process

_DELETED = 1


class Holding(NamedTuple):
    """From a revision of the store on, a host holds these slices: address and first port of each."""

    revision: int
    host: str
    slices: list[tuple[str, int]]


class StoreWatch:
    """Tells each change in a pool, once for each node that is heard of it; a node that is dead or frozen tells nothing.

    A node tells its changes in order, and none is left out.
    """

    def __init__(
        self, place: Host, endpoints: Sequence[str], pool: str, tell: Callable[[float, Holding], None]
    ) -> None:
        self._place, self._prefix, self._tell = place, f"natctl/host/{pool}/", tell
        self._ended = threading.Event()
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._threads = [threading.Thread(target=self._follow, args=(each,), daemon=True) for each in endpoints]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._ended.set()
        for process in list(self._processes.values()):
            process.kill()
        for thread in self._threads:
            thread.join(5)

    def _follow(self, endpoint: str) -> None:
        """Watch at one node, and begin again where the last watch ended."""
        seen = 0
        while not self._ended.is_set():
            command = ["etcdctl", "--endpoints", endpoint, "watch", "--prefix", self._prefix, "-w", "json"]
            with self._start(endpoint, [*command, "--rev", str(seen + 1)]) as process:
                assert process.stdout
                for line in process.stdout:
                    if not line.endswith("\n"):
                        break  # etcdctl was killed while it wrote
                    for holding in holdings(json.loads(line), self._prefix):
                        self._tell(time.time(), holding)
                        seen = holding.revision
            self._ended.wait(0.2)

    def _start(self, endpoint: str, command: Sequence[str]) -> subprocess.Popen[str]:
        with self._place.enter():
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={"PATH": TOOL_PATH, "ETCDCTL_API": "3"},
            )
        self._processes[endpoint] = process
        if self._ended.is_set():
            end_process(process)
        return process


def holdings(answer: dict[str, Any], prefix: str) -> Iterator[Holding]:
    """Yield what an answer of etcd's watch says."""
    for event in answer.get("Events") or ():
        entry = event["kv"]
        host = b64decode(entry["key"]).decode().removeprefix(prefix)
        there = [] if event.get("type") == _DELETED else json.loads(b64decode(entry["value"]))["blocks"]
        yield Holding(entry["mod_revision"], host, [(address, port) for address, port, *_ in there])
