"""``natctl proxy`` as a process: started, reloaded, hurt, and ended; and what it says where it cannot start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_network import own_network
from proxying import (
    ADDRESSES,
    PATIENCE_S,
    SERVER,
    WIDE_SLICES,
    dial,
    echo_server,
    echoes,
    proxy_text,
    read_all,
    running,
)
from waiting import wait_until

from netns_lab.servers import TcpServer

FIXED = WIDE_SLICES + proxy_text("listen", "127.0.0.1:8443", to=f"{SERVER}:443")


@pytest.fixture
def server() -> Iterator[TcpServer]:
    with own_network(*ADDRESSES), echo_server() as echo:
        yield echo


def refused(port: int) -> bool:
    try:
        dial("127.0.0.1", port).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_stop_lets_connections_finish_and_takes_no_more(server: TcpServer, tmp_path: Path) -> None:
    with running(tmp_path, FIXED) as proxy, dial("127.0.0.1", 8443) as sock:
        assert echoes(sock)
        proxy.signal(signal.SIGTERM)
        proxy.wait_for("stopping")
        wait_until(lambda: refused(8443), "no more connections")
        assert echoes(sock)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""
        assert proxy.wait() == 0
        assert proxy.wait_for("stopped")["proxies"]["listen"]["ended"] == {"finished": 1}


@pytest.mark.parametrize("impatient", [False, True])
def test_a_stop_ends_what_does_not_finish(server: TcpServer, tmp_path: Path, impatient: bool) -> None:
    grace = "600" if impatient else "0.3"
    with running(tmp_path, FIXED, "--grace", grace) as proxy, dial("127.0.0.1", 8443) as sock:
        assert echoes(sock)
        proxy.signal(signal.SIGTERM)
        proxy.wait_for("stopping")
        if impatient:
            proxy.signal(signal.SIGTERM)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert proxy.wait() == 0
        assert proxy.wait_for("stopped")["proxies"]["listen"]["ended"] == {"ended": 1}


def test_a_reload_takes_new_words_and_keeps_connections(server: TcpServer, tmp_path: Path) -> None:
    with running(tmp_path, FIXED) as proxy, dial("127.0.0.1", 8443) as sock:
        assert echoes(sock)
        proxy.config.write_text(FIXED + proxy_text("connect", "127.0.0.1:3128"))
        proxy.signal(signal.SIGHUP)
        proxy.wait_for("reloaded")
        assert echoes(sock)
        dial("127.0.0.1", 3128).close()
        with dial("127.0.0.1", 8443) as second:
            assert echoes(second)
        proxy.config.write_text(WIDE_SLICES + proxy_text("connect", "127.0.0.1:3128"))
        proxy.signal(signal.SIGHUP)
        proxy.wait_for("reloaded", 2)
        wait_until(lambda: refused(8443), "the endpoint that is no more")
        assert echoes(sock)
        sock.close()
        wait_until(lambda: len(proxy.workers()) == 2, "workers of before")


@pytest.mark.parametrize("fault", ["nonsense = 1\n", 'listen = "127.0.0.1:9"\n'])
def test_a_reload_that_fails_changes_nothing(server: TcpServer, tmp_path: Path, fault: str) -> None:
    taken = proxy_text("connect", "127.0.0.1:443")  # the echo server listens there
    with running(tmp_path, FIXED) as proxy, dial("127.0.0.1", 8443) as sock:
        assert echoes(sock)
        workers = proxy.workers()
        proxy.config.write_text(FIXED + (taken if "listen" in fault else fault))
        proxy.signal(signal.SIGHUP)
        message = proxy.wait_for("reload-failed")["message"]
        assert "127.0.0.1:443" in message if "listen" in fault else "nonsense" in message
        assert proxy.workers() == workers
        assert echoes(sock)
        with dial("127.0.0.1", 8443) as second:
            assert echoes(second)


def test_no_connection_is_lost_by_reloads_under_load(server: TcpServer, tmp_path: Path) -> None:
    with running(tmp_path, FIXED) as proxy:
        for number in range(120):
            if number % 30 == 10:
                proxy.signal(signal.SIGHUP)
            with dial("127.0.0.1", 8443) as sock:
                assert echoes(sock)
            if number % 30 == 29:  # signals that come before the last one was heard are one
                proxy.wait_for("reloaded", number // 30 + 1)
        wait_until(lambda: len(proxy.workers()) == 2, "workers of before")


def test_a_worker_that_died_is_replaced(server: TcpServer, tmp_path: Path) -> None:
    with running(tmp_path, FIXED, workers=1) as proxy:
        with dial("127.0.0.1", 8443) as sock:
            assert echoes(sock)
            (before,) = proxy.workers()
            os.kill(before, signal.SIGKILL)
            died = proxy.wait_for("worker-died")
            assert (died["pid"], died["reason"]) == (before, "killed by SIGKILL")
            assert read_all(sock) == b""
        proxy.wait_for("worker-started")
        with dial("127.0.0.1", 8443) as sock:
            assert echoes(sock)
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        stopped = proxy.wait_for("stopped")
        assert stopped["restarts"] == 1
        assert stopped["proxies"]["listen"]["active"] == 0


def test_nothing_stays_of_a_supervisor_that_was_killed(server: TcpServer, tmp_path: Path) -> None:
    with running(tmp_path, FIXED) as proxy, dial("127.0.0.1", 8443) as sock:
        assert echoes(sock)
        workers = proxy.workers()
        proxy.signal(signal.SIGKILL)
        proxy.wait()
        wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in workers), "workers end")
        wait_until(lambda: refused(8443), "the port is free")
    with running(tmp_path, FIXED), dial("127.0.0.1", 8443) as sock:
        assert echoes(sock)


def test_metrics(server: TcpServer, tmp_path: Path) -> None:
    with running(tmp_path, FIXED, "--metrics", "9465", "--interval", "0.2") as proxy:
        with dial("127.0.0.1", 8443) as sock:
            assert echoes(sock)
            with urllib.request.urlopen("http://127.0.0.1:9465/metrics", timeout=PATIENCE_S) as answer:
                text = answer.read().decode()
            assert 'natctl_proxy_connections{proxy="listen"} 1.0' in text
            assert 'natctl_proxy_bytes_total{direction="up",proxy="listen"} 6.0' in text
            assert "natctl_proxy_workers 2.0" in text
        assert proxy.wait_for("status", 2)["workers"] == 2


def fails(text: str, directory: Path, *before: str, options: tuple[str, ...] = ()) -> tuple[int, str]:
    """Run a proxy that cannot start; return its exit code and what it says."""
    config = directory / "natctl.toml"
    config.write_text(text)
    command = [*before, sys.executable, "-m", "nat_rewriter", "proxy", "--config", str(config), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_what_a_proxy_cannot_start_with(server: TcpServer, tmp_path: Path) -> None:
    assert fails(WIDE_SLICES, tmp_path) == (2, "natctl: proxy: the configuration has no [[proxy]]\n")
    code, said = fails(WIDE_SLICES + proxy_text("connect", "127.0.0.1:443"), tmp_path)
    assert (code, "another process listens there" in said) == (1, True)
    code, said = fails(WIDE_SLICES + proxy_text("connect", "192.0.2.77:3128"), tmp_path)
    assert (code, said) == (1, "natctl: listen: is not an address of this host: '192.0.2.77:3128'\n")
    elsewhere = FIXED.replace("198.51.100.10", "198.51.100.77")
    code, said = fails(elsewhere, tmp_path)
    assert (code, "ip address add 198.51.100.77 dev lo" in said) == (1, True)
    code, said = fails(FIXED, tmp_path, options=("--metrics", "127.0.0.1:443"))
    assert (code, said.startswith("natctl: serve metrics: ")) == (1, True)
    assert fails(FIXED, tmp_path, options=("--metrics", "nowhere"))[0] == 2


@pytest.mark.parametrize(
    ("capability", "listen", "mode"),
    [("net_admin", "127.0.0.1:3131", "tproxy"), ("net_bind_service", "127.0.0.1:80", "connect")],
)
def test_a_capability_that_is_missing_is_named(
    server: TcpServer, tmp_path: Path, capability: str, listen: str, mode: str
) -> None:
    keys = {"iifname": "eth0"} if mode == "tproxy" else {}
    text = WIDE_SLICES + proxy_text(mode, listen, slices=["ams-1"], **keys)
    without = ("setpriv", "--bounding-set", f"-{capability}", "--inh-caps", f"-{capability}")
    code, said = fails(text, tmp_path, *without)
    assert (code, f"needs CAP_{capability.upper()}" in said) == (4, True), said


def test_two_proxies_on_one_port(server: TcpServer, tmp_path: Path) -> None:
    with running(tmp_path, FIXED):
        code, said = fails(FIXED, tmp_path)
    assert (code, "another process listens there" in said) == (1, True)
