"""The proxies that are compared, each started for the same job: one address in front, one slice behind."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FRONT = ("127.0.0.1", 3128)
SOFT = "198.51.100.10"
SERVER = "203.0.113.1"
PORT = 443
MOST = 7900  # with more HAProxy does not start, where a process may have 20,000 descriptors

CONFIGURATION = """
version = 1
[controller]
coexist = "off"
guard = "off"
[[slice]]
name = "ams-1"
address = "{soft}"
ports = ["{ports}"]
[[proxy]]
name = "measured"
mode = "listen"
listen = "{front}:{front_port}"
to = "{server}:{port}"
slices = ["ams-1"]
max_connections = {most}
"""

Start = Callable[[Path, str], list[str]]


def natctl(directory: Path, ports: str, most: int = 0) -> list[str]:
    """Return the command of natctl's own proxy."""
    path = _configuration(directory, ports, most or MOST)
    return [sys.executable, "-m", "nat_rewriter", "proxy", "-q", "--config", str(path), "--workers", "2"]


def haproxy_spliced(directory: Path, ports: str) -> list[str]:
    """Return the command of HAProxy with the configuration that natctl renders, with splice(2) for long flows."""
    return _haproxy(directory, ports, spliced=True)


def haproxy(directory: Path, ports: str) -> list[str]:
    """Return the command of HAProxy in TCP mode as it comes."""
    return _haproxy(directory, ports, spliced=False)


def _haproxy(directory: Path, ports: str, *, spliced: bool) -> list[str]:
    rendered = subprocess.run(
        [sys.executable, "-m", "nat_rewriter", "proxy", "--render", "haproxy", "--config",
         str(_configuration(directory, ports))],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    if not spliced:
        rendered = rendered.replace("    option splice-auto\n", "")
    path = directory / "haproxy.cfg"
    path.write_text(rendered)
    return ["haproxy", "-db", "-f", str(path)]


def haproxy_twice(directory: Path, low: str, high: str) -> list[str]:
    """Return the command of two HAProxys that share the front, each with a part of the ports.

    For more connections than one process may have descriptors for; they end with the shell.
    """
    commands = []
    for ports in (low, high):
        place = directory / ports
        place.mkdir()
        commands.append("setpriv --pdeathsig TERM " + " ".join(_haproxy(place, ports, spliced=False)))
    return ["sh", "-c", " & ".join([*commands, "wait"])]


def _configuration(directory: Path, ports: str, most: int = MOST) -> Path:
    path = directory / "natctl.toml"
    fields = {
        "soft": SOFT,
        "ports": ports,
        "front": FRONT[0],
        "front_port": FRONT[1],
        "server": SERVER,
        "port": PORT,
        "most": most,
    }
    path.write_text(CONFIGURATION.format(**fields))
    return path


ENGINES: dict[str, Start] = {
    "`natctl proxy`": natctl,
    "HAProxy, TCP mode": haproxy,
    "HAProxy, `splice-auto`": haproxy_spliced,
}


@contextmanager
def started(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a proxy until the block ends; it listens when the block begins."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(process)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(FRONT, timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"a proxy did not start: {process.args!r}")
