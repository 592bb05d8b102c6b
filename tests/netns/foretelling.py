"""Explaining a tuple, and then letting it happen: what the tests of ``natctl explain`` share."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nat_rewriter.config import read_policy
from nat_rewriter.controller.explanation import explain_packet
from nat_rewriter.explain import Packet, parse_tuple
from nat_rewriter.explain.objects import explanation_object
from nat_rewriter.kernel import conntrack
from nat_rewriter.model.flows import Flow, flow_from_record
from netns_lab import Lab, round_trip
from netns_lab.topology import DOWNLINK, SERVER, SERVER_6, SOFT_ADDRESS, SOFT_ADDRESS_6

LabFactory = Callable[..., Lab]
FAMILIES = pytest.mark.parametrize("family", [4, 6])
SERVERS = {4: SERVER, 6: SERVER_6}
SOFT = {4: SOFT_ADDRESS, 6: SOFT_ADDRESS_6}
PORTS = {"tcp": 443, "udp": 53}


def end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def explain(lab: Lab, config: Path, *words: str) -> dict[str, Any]:
    """Explain as the command does, in this process: most of the tests would wait for interpreters otherwise."""
    with lab.egress.enter():
        return explanation_object(explain_packet(read_policy(config), Packet(parse_tuple(words))))


def explain_by_command(lab: Lab, config: Path, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = lab.natctl("explain", *words, "--json", "--config", config, expect=0).json()
    return found


def applied(lab: Lab, **options: str) -> Path:
    config = lab.config(**options)
    lab.natctl("apply", "-q", "--config", config, expect=0)
    return config


def list_flows(lab: Lab) -> list[Flow]:
    with lab.egress.enter():
        return [flow_from_record(record) for record in conntrack.dump()]


def client_address(number: int, family: int) -> str:
    return f"10.0.0.{number}" if family == 4 else f"2001:db8:10::{number:x}"


def wait_for_addresses(lab: Lab, timeout_s: float = 5.0) -> None:
    """Wait until the kernel lets every IPv6 address of the clients be used: a busy machine takes its time for many."""
    deadline = time.monotonic() + timeout_s
    while lab.client.run(["ip", "-6", "address", "show", "tentative"]).stdout and time.monotonic() < deadline:
        time.sleep(0.02)


def send_from(lab: Lab, address: str, port: int, dst: tuple[str, int]) -> None:
    with lab.client.udp_connect(dst, src=(address, port)) as sock:
        sock.send(b"natctl")


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of a local socket: whether it worked, how it failed, and its port on the wire."""

    works: bool
    error: str
    wire_port: int | None


def try_socket(lab: Lab, protocol: str, soft: str, port: int, server: str) -> Seen:
    with lab.upstream.capture(DOWNLINK) as capture:
        before = len(capture.packets())
        error, works = "", False
        dst, src = (server, PORTS[protocol]), (soft, port)
        try:
            if protocol == "tcp":
                works = round_trip(lab.egress.tcp_connect(dst, src=src, timeout_s=0.5))
            else:
                sock = lab.egress.udp_connect(dst, src=src, timeout_s=0.5)
                works = exchange(sock)
        except OSError as failure:
            error = type(failure).__name__
        sent = [one.tuple for one in capture.packets()[before:] if str(one.tuple.src) == soft]
    return Seen(works, error, sent[0].sport if sent else None)


def exchange(sock: socket.socket) -> bool:
    """Send a datagram and wait for its answer; what is refused loses the datagram first, and says so then."""
    try:
        sock.send(b"natctl")
    except PermissionError as lost:
        try:
            sock.recv(100)
        except TimeoutError:
            raise lost from None
    return bool(sock.recv(100))


def assert_foretold(outcome: dict[str, Any], port: int, seen: Seen) -> None:
    ranges = [tuple(map(int, one.split("-"))) for one in outcome["ports"]]
    inside = seen.wire_port is not None and any(one[0] <= seen.wire_port <= one[-1] for one in ranges)
    match outcome["outcome"]:
        case "kept":
            assert seen == Seen(True, "", port)
        case "moved":
            assert seen.works
            assert inside
            assert seen.wire_port != port
        case "refused":
            assert seen == Seen(False, "ConnectionRefusedError", None)
        case "dropped" | "exhausted":
            # A datagram that is dropped on its way out is an error of the socket; a SYN is sent again.
            error = "PermissionError" if "EPERM" in outcome["text"] else "TimeoutError"
            assert seen == Seen(False, error, None)
        case "leaked":
            assert (seen.works, inside) == (False, True)
            assert seen.wire_port not in range(9000, 9010)
        case other:
            pytest.fail(f"nothing to compare {other!r} with")


def hold_a_port(lab: Lab, protocol: str, family: int) -> tuple[socket.socket, int]:
    """Let a client's flow hold a port of the slice towards the server, and return which."""
    dst = (SERVERS[family], PORTS[protocol])
    if protocol == "tcp":
        sock = lab.client.tcp_connect(dst)
    else:
        sock = lab.client.udp_connect(dst)
        sock.send(b"natctl")
        sock.recv(100)
    (flow,) = [one for one in list_flows(lab) if str(one.reply.dst) == SOFT[family]]
    return sock, flow.reply.dport


def serve(lab: Lab) -> None:
    lab.server.tcp_server(PORTS["tcp"])
    lab.server.udp_server(PORTS["udp"])
