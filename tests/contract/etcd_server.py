"""A real etcd for tests: one member or several, on loopback, in directories of their own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from urllib.request import urlopen

_START_S = 60.0


class Member:
    """One etcd of a cluster; can be killed and started again."""

    def __init__(
        self, directory: Path, name: str, ports: tuple[int, int], cluster: str, options: Sequence[str]
    ) -> None:
        self.port, peer = ports
        self._scheme = "https" if "--cert-file" in options else "http"
        self._log = directory / f"{name}.log"
        client = f"{self._scheme}://127.0.0.1:{self.port}"
        self._command = [
            shutil.which("etcd") or "etcd", "--name", name, "--data-dir", str(directory / name), "--logger", "zap",
            "--log-level", "error", "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", f"http://127.0.0.1:{peer}",
            "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}", "--initial-cluster", cluster, *options,
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        """Run it, or run it again on what it has on disk."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> None:
        """Wait until it answers."""
        end = time.monotonic() + _START_S
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < end, self._log.read_text()
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            if self._scheme == "https":
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            else:
                urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2).read()
        except OSError:
            return False
        return True


class Cluster:
    """Several members; all are killed at the end."""

    def __init__(self, directory: Path, count: int, options: Sequence[str] = ()) -> None:
        ports = _free_ports(2 * count)
        names = [f"m{number}" for number in range(count)]
        peers = ",".join(f"{name}=http://127.0.0.1:{peer}" for name, peer in zip(names, ports[count:], strict=True))
        self.members = [
            Member(directory, name, (ports[number], ports[count + number]), peers, options)
            for number, name in enumerate(names)
        ]

    def __enter__(self) -> Cluster:
        try:
            for member in self.members:
                member.wait()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def endpoints(self) -> tuple[tuple[str, int], ...]:
        """Where its members answer."""
        return tuple(("127.0.0.1", member.port) for member in self.members)

    def kill(self) -> None:
        """End all members."""
        for member in self.members:
            member.kill()


@contextmanager
def etcd_server(directory: Path, *options: str) -> Iterator[int]:
    """Run one etcd for as long as the context lasts; yields the port it answers at."""
    with Cluster(directory, 1, options) as cluster:
        yield cluster.members[0].port


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at now; they are asked for together, so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
