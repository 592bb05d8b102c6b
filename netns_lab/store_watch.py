"""What etcd says of who holds what, as it happens: etcdctl's own watch, one on each node.

A watch on a busy machine is late, by how much nobody knows. So the lab writes the time into etcd, again and again:
etcd's own order then tells of a change that it was made after a time, and of what was heard that it was all up to one.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from itertools import groupby
from typing import Any, NamedTuple, Protocol

from netns_lab.host import TOOL_PATH, Host, end_process

_DELETED = 1
_HELD, _CLOCK = "natctl/host/", "lab/clock/"
_WATCHED = (_CLOCK, "natctl/host0")  # from one key up to another: both of them
_TICK_S, _PATIENCE_S = 0.25, 2.0

Slices = list[tuple[str, int]]  # address and first port of each


class Revision(NamedTuple):
    """What one change of the store did: what each host holds of each pool since, and a time that was written."""

    number: int
    holdings: dict[str, Slices | None]  # POOL/HOST -> slices; None: its lease has ended
    clock: float = 0.0


class Listener(Protocol):
    """Who wants to know."""

    def changed(self, since: float, until: float, revision: Revision) -> None:
        """Hear of a revision that was made between two times: of each, in order, once by each node."""

    def heard_all(self, until: float) -> None:
        """Hear that all that was made up to a time has been told."""


class StoreWatch:
    """Tells each change of who holds what; a node that is dead or frozen tells nothing."""

    def __init__(self, place: Host, endpoints: Sequence[tuple[str, int]], listener: Listener) -> None:
        self._place, self._listener = place, listener
        self._ended = threading.Event()
        self._processes: dict[tuple[str, int], subprocess.Popen[str]] = {}
        works = [self._follow, self._write_time]
        self._threads = [
            threading.Thread(target=work, args=(each,), daemon=True) for work in works for each in endpoints
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._ended.set()
        for process in list(self._processes.values()):
            process.kill()
        for thread in self._threads:
            thread.join(5)

    def _follow(self, endpoint: tuple[str, int]) -> None:
        """Watch at one node, and begin again where the last watch ended."""
        seen, clock = 0, 0.0
        while not self._ended.is_set():
            command = ["etcdctl", "--endpoints", f"{endpoint[0]}:{endpoint[1]}", "watch", *_WATCHED, "-w", "json"]
            with self._start(endpoint, [*command, "--rev", str(seen + 1)]) as process:
                assert process.stdout
                for line in process.stdout:
                    if not line.endswith("\n"):
                        break  # etcdctl was killed while it wrote
                    for revision in revisions(json.loads(line)):
                        self._listener.changed(clock, time.time(), revision)
                        seen, clock = revision.number, max(clock, revision.clock)
                    self._listener.heard_all(clock)
            self._ended.wait(0.2)

    def _write_time(self, endpoint: tuple[str, int]) -> None:
        """Write the time by one node; one that is dead or frozen is asked again and again."""
        connection = HTTPConnection(*endpoint, timeout=_PATIENCE_S)
        key = b64encode(f"{_CLOCK}{endpoint[0]}".encode()).decode()
        with self._place.enter():
            while not self._ended.wait(_TICK_S):
                value = b64encode(str(time.time()).encode()).decode()
                with suppress(OSError, HTTPException):
                    connection.request("POST", "/v3/kv/put", json.dumps({"key": key, "value": value}))
                    connection.getresponse().read()
                    continue
                connection.close()
        connection.close()

    def _start(self, endpoint: tuple[str, int], command: Sequence[str]) -> subprocess.Popen[str]:
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


def revisions(answer: dict[str, Any]) -> Iterator[Revision]:
    """Yield what an answer of etcd's watch says, revision by revision."""
    events = ((event["kv"]["mod_revision"], event) for event in answer.get("Events") or ())
    for number, of_number in groupby(events, key=lambda each: each[0]):
        holdings, clock = dict[str, Slices | None](), 0.0
        for _, event in of_number:
            key = b64decode(event["kv"]["key"]).decode()
            value = b"" if event.get("type") == _DELETED else b64decode(event["kv"]["value"])
            if key.startswith(_HELD):
                holdings[key.removeprefix(_HELD)] = _slices(value) if value else None
            elif key.startswith(_CLOCK):
                clock = float(value)
        yield Revision(number, holdings, clock)


def _slices(record: bytes) -> Slices:
    return [(address, first) for address, first, *_ in json.loads(record)["blocks"]]
