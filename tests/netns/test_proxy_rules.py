"""Proxies in the lab: packets that rules lead there, ports that NAT holds, and HAProxy with what natctl renders."""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from proxying import PATIENCE_S, proxy_text, running
from waiting import wait_until

from netns_lab import Lab, round_trip
from netns_lab.host import end_process
from netns_lab.topology import CLIENT, CLIENT_6, SERVER, SERVER_6, SOFT_ADDRESS, SOFT_ADDRESS_6

FAMILIES = [(SERVER, SOFT_ADDRESS, "10.0.0.1"), (SERVER_6, SOFT_ADDRESS_6, "2001:db8:10::1")]
BOTH = ["0.0.0.0:3129", "[::]:3129"]
MODES = ["redirect", "tproxy"]


def intercepting(mode: str, listen: list[str] = BOTH, **keys: Any) -> str:
    return proxy_text(mode, listen, slices=["ams-1", "ams-2"], iifname="fish0", **keys)


@contextmanager
def proxied(lab: Lab, directory: Path, text: str, *, coexist: str = "confine") -> Iterator[Any]:
    """Apply a configuration with proxies, and run them on the egress host."""
    config = lab.config(coexist=coexist, extra=text)
    lab.natctl("apply", "--config", config, expect=0)
    with lab.egress.enter(), running(directory, config.read_text()) as proxy:
        yield proxy


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("server", "soft", "gateway"), FAMILIES, ids=["ipv4", "ipv6"])
def test_forwarded_connections_go_through_the_proxy(
    lab: Lab, tmp_path: Path, mode: str, server: str, soft: str, gateway: str
) -> None:
    echo = lab.server.tcp_server(443)
    with proxied(lab, tmp_path, intercepting(mode)) as proxy:
        with lab.client.tcp_connect((server, 443)) as sock:
            assert sock.getpeername()[0] == server
            assert round_trip(sock)
            address, port = echo.wait_for_peers(1)[0]
            assert (address, 9000 <= port <= 9009) == (soft, True)
        ended = proxy.wait_for_outcome("finished")
        assert ended["destination"].endswith(":443")
        assert ended["client"].strip("[]").startswith(CLIENT_6 if ":" in server else CLIENT)
    assert not any(lab.leaks().sent.values())


@pytest.mark.parametrize("mode", MODES)
def test_the_proxy_itself_and_this_host_are_not_destinations(lab: Lab, tmp_path: Path, mode: str) -> None:
    echo = lab.egress.tcp_server(22)
    with proxied(lab, tmp_path, intercepting(mode)) as proxy:
        with lab.client.tcp_connect(("10.0.0.1", 22)) as sock:
            assert round_trip(sock)  # an operator's connection to this host stays one
            assert echo.wait_for_peers(1)[0][0] == CLIENT
        with pytest.raises(ConnectionResetError):
            lab.client.tcp_connect(("10.0.0.1", 3129)).recv(1)
        if mode == "redirect":
            assert proxy.wait_for_outcome("loop")


def test_only_what_matches_is_led_to_the_proxy(lab: Lab, tmp_path: Path) -> None:
    lab.server.tcp_server(443)
    lab.server.tcp_server(8080)
    with proxied(lab, tmp_path, intercepting("redirect", ports=["443"])) as proxy:
        for port in (8080, 443):
            with lab.client.tcp_connect((SERVER, port)) as sock:
                assert round_trip(sock)
        proxy.wait_for_outcome("finished")
        assert proxy.wait_for("connection")["destination"] == f"{SERVER}:443"
        assert len(proxy.events("connection")) == 1


def rules_of(lab: Lab) -> str:
    return "".join(lab.egress.run(["ip", family, "rule"]).stdout for family in ("-4", "-6"))


def test_routing_for_tproxy_goes_with_the_proxy(lab: Lab, tmp_path: Path) -> None:
    before = rules_of(lab)
    for _ in range(2):
        with proxied(lab, tmp_path, intercepting("tproxy")):
            assert rules_of(lab).count("fwmark 0x4e50 lookup 20048") == 2
        assert rules_of(lab) == before
    with proxied(lab, tmp_path, intercepting("tproxy")) as proxy:
        proxy.signal(9)
        proxy.wait()
    with proxied(lab, tmp_path, intercepting("tproxy")):  # takes over what the killed one has left
        assert rules_of(lab).count("fwmark 0x4e50 lookup 20048") == 2
    assert rules_of(lab) == before
    routes = ["ip", "route", "show", "table", "20048"]
    assert lab.egress.run(routes, check=False).stdout == ""


def test_a_reload_may_add_the_first_tproxy(lab: Lab, tmp_path: Path) -> None:
    echo = lab.server.tcp_server(443)
    text = proxy_text("socks", "127.0.0.1:1080", slices=["ams-1", "ams-2"])
    with proxied(lab, tmp_path, text) as proxy:
        assert "20048" not in rules_of(lab)
        added = lab.config(extra=text + intercepting("tproxy"))
        lab.natctl("apply", "--config", added, expect=0)
        proxy.config.write_text(added.read_text())
        proxy.signal(signal.SIGHUP)
        proxy.wait_for("reloaded")
        assert rules_of(lab).count("fwmark 0x4e50 lookup 20048") == 2
        with lab.client.tcp_connect((SERVER, 443)) as sock:
            assert round_trip(sock)
            assert echo.wait_for_peers(1)[0][0] == SOFT_ADDRESS
    assert "20048" not in rules_of(lab)


def hold_by_nat(lab: Lab, ports: range) -> list[socket.socket]:
    """Have the client's connections hold ports of the slice towards the server: NAT keeps a port that is free."""
    return [lab.client.tcp_connect((SERVER, 443), src=(CLIENT, port)) for port in ports]


@pytest.mark.parametrize("coexist", ["confine", "refuse"])
def test_ports_that_nat_holds_are_no_trouble(lab: Lab, tmp_path: Path, coexist: str) -> None:
    echo = lab.server.tcp_server(443)
    text = proxy_text("connect", "127.0.0.1:3128", slices=["ams-1"], connect_timeout=5)
    with proxied(lab, tmp_path, text, coexist=coexist) as proxy:
        held = hold_by_nat(lab, range(9000, 9007))
        echo.wait_for_peers(7)
        ours = []
        for _ in range(3):
            sock = socket.create_connection(("127.0.0.1", 3128), timeout=PATIENCE_S)
            sock.sendall(f"CONNECT {SERVER}:443 HTTP/1.1\r\n\r\n".encode())
            assert sock.recv(1000).startswith(b"HTTP/1.1 200")
            assert round_trip(sock)
            ours.append(sock)
        assert sorted(port for _, port in echo.peers) == list(range(9000, 9010))
        assert all(round_trip(sock) for sock in held)
        assert not proxy.events("worker-died")
        for sock in ours:
            sock.close()
    assert not any(lab.leaks().sent.values())


haproxy_needed = pytest.mark.skipif(not shutil.which("haproxy"), reason="needs haproxy")


@contextmanager
def haproxy(lab: Lab, config: Path, directory: Path, ready: Callable[[], bool]) -> Iterator[None]:
    """Run HAProxy on the egress host, as natctl renders it."""
    rendered = directory / "haproxy.cfg"
    rendered.write_text(lab.natctl("proxy", "--render", "haproxy", "--config", config, expect=0).stdout)
    checked = lab.egress.run(["haproxy", "-c", "-f", rendered], check=False)
    assert checked.returncode == 0, checked.stderr + checked.stdout
    process = lab.egress.popen(["haproxy", "-db", "-f", rendered])
    try:
        wait_until(ready, "haproxy listens")
        yield
    finally:
        end_process(process)


def listens(lab: Lab, port: int) -> Callable[[], bool]:
    return lambda: f":{port} " in lab.egress.run(["ss", "-tln"]).stdout


@haproxy_needed
@pytest.mark.parametrize("mode", ["redirect", "listen"])
def test_haproxy_does_the_same_with_what_natctl_renders(lab: Lab, tmp_path: Path, mode: str) -> None:
    echo = lab.server.tcp_server(443)
    keys: dict[str, Any] = {"max_connections": 100}
    keys |= {"iifname": "fish0"} if mode == "redirect" else {"to": f"{SERVER}:443"}
    config = lab.config(extra=proxy_text(mode, "0.0.0.0:3129", **({"slices": ["ams-1"]} | keys)))
    lab.natctl("apply", "--config", config, expect=0)
    with haproxy(lab, config, tmp_path, listens(lab, 3129)):
        target = (SERVER, 443) if mode == "redirect" else ("10.0.0.1", 3129)
        with lab.client.tcp_connect(target) as sock:
            assert round_trip(sock)
            address, port = echo.wait_for_peers(1)[0]
            assert (address, 9000 <= port <= 9009) == (SOFT_ADDRESS, True)


@haproxy_needed
def test_haproxy_takes_every_kind_of_proxy_that_it_can_be(lab: Lab, tmp_path: Path) -> None:
    text = intercepting("tproxy") + intercepting("redirect", listen=["0.0.0.0:3130", "[::]:3130"])
    text += proxy_text("listen", "127.0.0.1:8443", to=f"{SERVER}:443", proxy_protocol="v2", slices=["ams-1"])
    text += proxy_text("socks", "127.0.0.1:1080", slices=["ams-2"])
    config = lab.config(extra=text)
    done = lab.natctl("proxy", "--render", "haproxy", "--config", config, expect=0)
    assert "proxy socks is left out" in done.stderr
    assert done.stdout.count("listen ") == 3
    rendered = tmp_path / "haproxy.cfg"
    rendered.write_text(done.stdout)
    checked = lab.egress.run(["haproxy", "-c", "-f", rendered], check=False)
    assert checked.returncode == 0, checked.stderr
