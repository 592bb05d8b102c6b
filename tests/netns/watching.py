"""What tests of watch share: a running watch and its lines, and a socket that sends nothing."""

from __future__ import annotations

import json
import queue
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from netns_lab import Lab

PATIENCE_S = 30.0  # starting takes a while on a machine that does much else
TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE = 30, 34

Line = dict[str, Any]


def placeholder(lab: Lab, src: tuple[str, int], dst: tuple[str, int]) -> socket.socket:
    """A socket of the egress host in SYN-SENT that has sent nothing: the SYN waits for the first data."""
    sock = lab.egress.open_socket(socket.SOCK_STREAM)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    sock.bind(src)
    sock.connect(dst)
    return sock


class Watching:
    """A running `natctl watch`, and its lines as they come."""

    def __init__(self, lab: Lab, config: Path, *options: str) -> None:
        command = [sys.executable, "-m", "nat_rewriter", "watch", "--config", str(config), *options]
        self.process = lab.egress.popen(command)
        self._arrived: queue.Queue[tuple[float, Line]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._arrived.put((time.monotonic(), json.loads(line)))

    def next(self, kind: str, state: str = "open", patience_s: float = PATIENCE_S) -> tuple[float, Line]:
        """Return the next finding of a kind in a state, and when it arrived; what came before it is passed over."""
        return self._next({"kind": kind, "state": state}, patience_s)

    def next_action(self, verb: str, result: str = "done", patience_s: float = PATIENCE_S) -> Line:
        """Return the next action with a result; what came before it is passed over."""
        return self._next({"action": verb, "result": result}, patience_s)[1]

    def _next(self, wanted: Line, patience_s: float) -> tuple[float, Line]:
        until = time.monotonic() + patience_s
        while True:
            moment, line = self._arrived.get(timeout=max(0.01, until - time.monotonic()))
            if wanted.items() <= line.items():
                return moment, line

    def rest(self, after_s: float = 0.0) -> list[tuple[str, str]]:
        """Return of all that arrived and was not asked for, after a while: kind and state, or action and result."""
        time.sleep(after_s)
        return [
            (one["kind"], one["state"]) if "kind" in one else (one["action"], one["result"])
            for _, one in iter(self._take, None)
        ]

    def _take(self) -> tuple[float, Line] | None:
        try:
            return self._arrived.get_nowait()
        except queue.Empty:
            return None

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(5)


def wait_looking(lab: Lab, watching: Watching) -> None:
    """Return once a watch is under way: it tells of an overlap that is made and mended for the purpose."""
    lab.egress.sysctl("net.ipv4.ip_local_port_range", "9005 60999")
    watching.next("ephemeral-overlap")
    lab.egress.sysctl("net.ipv4.ip_local_port_range", "32768 60999")
    for _ in lab.slices:
        watching.next("ephemeral-overlap", "closed")
