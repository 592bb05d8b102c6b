"""A real etcd for tests: one member, on loopback, in a directory of its own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

_START_S = 30.0


@contextmanager
def etcd_server(directory: Path, *options: str, scheme: str = "http") -> Iterator[int]:
    """Run etcd for as long as the context lasts; yields the port it answers at."""
    program = shutil.which("etcd")
    assert program, "etcd is not installed"
    client, peer = _free_ports(2)
    command = [
        program, "--data-dir", str(directory / "etcd"), "--logger", "zap", "--log-level", "error",
        "--listen-client-urls", f"{scheme}://127.0.0.1:{client}",
        "--advertise-client-urls", f"{scheme}://127.0.0.1:{client}",
        "--listen-peer-urls", f"http://127.0.0.1:{peer}",
        "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
        "--initial-cluster", f"default=http://127.0.0.1:{peer}", *options,
    ]  # fmt: skip
    with (directory / "etcd.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)
    try:
        _wait(client, scheme, process, directory / "etcd.log")
        yield client
    finally:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at now; they are asked for together, so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait(port: int, scheme: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            if scheme == "https":
                socket.create_connection(("127.0.0.1", port), 1).close()
            else:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=1).read()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"etcd did not start: {log.read_text()}")
