"""A real etcd: one member or several, each with a directory of its own, on loopback or on hosts of a lab."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import NamedTuple
from urllib.request import urlopen

from nat_rewriter.errors import NatctlError

_START_S = 60.0


class Place(NamedTuple):
    """Where a member answers clients and other members, and the namespace to be in for that."""

    address: str
    client_port: int = 2379
    peer_port: int = 2380
    enter: Callable[[], AbstractContextManager[None]] = nullcontext


class Member:
    """One etcd of a cluster; can be killed, stopped, and started again."""

    def __init__(self, directory: Path, name: str, place: Place, cluster: str, options: Sequence[str]) -> None:
        self.place = place
        self._scheme = "https" if "--cert-file" in options else "http"
        self._log = directory / f"{name}.log"
        client, peer = f"{self._scheme}://{place.address}:{place.client_port}", _peer_url(place)
        self._command = [
            shutil.which("etcd") or "etcd", "--name", name, "--data-dir", str(directory / name), "--logger", "zap",
            "--log-level", "error", "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", cluster, *options,
        ]  # fmt: skip
        self.start()

    @property
    def port(self) -> int:
        """Where it answers clients."""
        return self.place.client_port

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def start(self) -> None:
        """Run it, or run it again on what it has on disk."""
        with self._log.open("ab") as log, self.place.enter():
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Let it stand still."""
        self._process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def wait(self) -> None:
        """Wait until it answers. Raises NatctlError where it has ended, or takes too long."""
        end = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() >= end:
                raise NatctlError("start etcd", self._log.read_text(errors="replace")[-2000:], self._log)
            time.sleep(0.1)

    def leads(self) -> bool:
        """Tell whether it says that it leads the others; False where it says nothing."""
        url = f"{self._scheme}://{self.place.address}:{self.port}/v3/maintenance/status"
        try:
            with self.place.enter(), urlopen(url, b"{}", timeout=2) as answer:
                told = json.load(answer)
        except OSError:
            return False
        return bool(told["leader"] == told["header"]["member_id"])

    def _answers(self) -> bool:
        try:
            with self.place.enter():
                if self._scheme == "https":
                    socket.create_connection((self.place.address, self.port), 1).close()
                else:
                    urlopen(f"http://{self.place.address}:{self.port}/health", timeout=2).read()
        except OSError:
            return False
        return True


class Cluster:
    """Several members; all are killed at the end."""

    def __init__(self, directory: Path, places: Sequence[Place], options: Sequence[str] = ()) -> None:
        named = {f"m{number}": place for number, place in enumerate(places)}
        peers = ",".join(f"{name}={_peer_url(place)}" for name, place in named.items())
        self.members = [Member(directory, name, place, peers, options) for name, place in named.items()]

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
        return tuple((member.place.address, member.port) for member in self.members)

    def leader(self) -> Member:
        """Return the member that leads, once there is one. Raises NatctlError where that takes too long."""
        end = time.monotonic() + _START_S
        while True:
            for member in self.members:
                if member.leads():
                    return member
            if time.monotonic() >= end:
                raise NatctlError("find leader", f"none in {_START_S:.0f} s", ", ".join(map(str, self.endpoints)))
            time.sleep(0.1)

    def kill(self) -> None:
        """End all members."""
        for member in self.members:
            member.kill()


def loopback(count: int) -> list[Place]:
    """Return places for so many members on this host, at ports that nobody listens at now."""
    ports = _free_ports(2 * count)
    return [Place("127.0.0.1", *pair) for pair in zip(ports[:count], ports[count:], strict=True)]


@contextmanager
def etcd_server(directory: Path, *options: str) -> Iterator[int]:
    """Run one etcd for as long as the context lasts; yields the port it answers at."""
    with Cluster(directory, loopback(1), options) as cluster:
        yield cluster.members[0].port


def _peer_url(place: Place) -> str:
    return f"http://{place.address}:{place.peer_port}"


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at now; they are asked for together, so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
