"""A slice of ten ports, ten connections to each of ten destinations: how many of the hundred an engine carries."""

from __future__ import annotations

import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from netns_lab import Lab, round_trip
from netns_lab.host import end_process
from netns_lab.topology import CLIENT_LINK, SERVER, SOFT_ADDRESS

_NETWORK = SERVER.rpartition(".")[0]
DESTINATIONS = [(f"{_NETWORK}.{last}", port) for last in range(1, 6) for port in (80, 443)]
EACH = 10
_PROXY = f"""
[[proxy]]
name = "web"
mode = "redirect"
listen = "0.0.0.0:3129"
slices = ["ams-1"]
iifname = "{CLIENT_LINK}"
max_connections = 1000
"""
_PATIENCE_S = 5.0


def carried() -> dict[str, int]:
    """Return how many connections worked and were held at once, by engine."""
    return {"`natctl proxy`": _carried_by(_natctl), "HAProxy": _carried_by(_haproxy)}


def _carried_by(command: Callable[[Lab, Path, Path], Sequence[str]]) -> int:
    with Lab(slices=[f"{SOFT_ADDRESS}:9000-9009"]) as lab, tempfile.TemporaryDirectory() as directory:
        for port in (80, 443):
            lab.server.tcp_server(port)
        config = lab.config(extra=_PROXY)
        lab.natctl("apply", "--config", config, expect=0)
        process = lab.egress.popen(list(command(lab, config, Path(directory))))
        try:
            _wait_for(lab)
            return _hold(lab)
        finally:
            end_process(process)


def _natctl(_: Lab, config: Path, __: Path) -> Sequence[str]:
    return [sys.executable, "-m", "nat_rewriter", "proxy", "-q", "--config", str(config), "--workers", "2"]


def _haproxy(lab: Lab, config: Path, directory: Path) -> Sequence[str]:
    path = directory / "haproxy.cfg"
    path.write_text(lab.natctl("proxy", "--render", "haproxy", "--config", config, expect=0).stdout)
    return ["haproxy", "-db", "-f", str(path)]


def _wait_for(lab: Lab) -> None:
    deadline = time.monotonic() + 20
    while ":3129 " not in lab.egress.run(["ss", "-Hltn"]).stdout:
        if time.monotonic() > deadline:
            raise RuntimeError("a proxy did not start")
        time.sleep(0.1)


def _hold(lab: Lab) -> int:
    with ExitStack() as held:
        return sum(_works(lab, destination, held) for destination in DESTINATIONS * EACH)


def _works(lab: Lab, destination: tuple[str, int], held: ExitStack) -> bool:
    sock = held.enter_context(lab.client.open_socket(socket.SOCK_STREAM))
    sock.settimeout(_PATIENCE_S)
    try:
        sock.connect(destination)
        return round_trip(sock)
    except OSError:
        return False
