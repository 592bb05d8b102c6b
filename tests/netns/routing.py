"""What tests of routing share: a configuration with a tunnel, placeholder sockets, and all that routing may change."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

from nat_rewriter.config import read_policy
from nat_rewriter.controller.generations import place_of
from nat_rewriter.controller.observation import look_once
from nat_rewriter.controller.routing import apply_route, remove_route
from nat_rewriter.controller.routing_view import read_view
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.routing import Step
from nat_rewriter.report.route import view_lines, view_object
from netns_lab import Lab
from netns_lab.host import round_trip
from netns_lab.placeholders import open_placeholder
from netns_lab.servers import Endpoint
from netns_lab.topology import SERVER, SERVER_6, SOFT_ADDRESS, SOFT_ADDRESS_6, UPLINK

TABLE = "natctl"
SOFT = {4: SOFT_ADDRESS, 6: SOFT_ADDRESS_6}
SERVERS = {4: SERVER, 6: SERVER_6}
ANSWERS = ("ingress", "device", "sysctl")


def route_keys(answer: str = "ingress", **keys: object) -> str:
    """Return a ``[route]`` for the default slices of a lab and a tunnel soft0."""
    usual: dict[str, object] = {"tunnel": "soft0", "outer": [UPLINK], "slices": ["ams-1", "ams-2"]}
    text = {"early_demux": answer} | usual | keys
    return "[route]\n" + "\n".join(f"{key} = {_toml(value)}" for key, value in text.items())


def _toml(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def configured(lab: Lab, answer: str = "ingress", **keys: object) -> Path:
    """Return the path of a configuration with ``[route]``."""
    return lab.config(coexist="off", guard="off", extra=route_keys(answer, **keys))


class Router:
    """What ``natctl route`` does on the egress host of a lab, without starting a program for each step."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def apply(self, answer: str = "ingress", **keys: object) -> list[Step]:
        """Put a route in place and return what was done."""
        with self._lab.egress.enter():
            return apply_route(self.policy(answer, **keys), place_of(None, TABLE))

    def remove(self) -> list[Step]:
        """Take it away and return what was done."""
        with self._lab.egress.enter():
            return remove_route(TABLE, place_of(None, TABLE))

    def show(self) -> dict[str, Any]:
        """Return what ``route show --json`` prints."""
        with self._lab.egress.enter():
            return view_object(read_view(self._policy, place_of(None, TABLE)))

    def lines(self) -> str:
        """Return what ``route show`` prints."""
        with self._lab.egress.enter():
            return "\n".join(view_lines(read_view(self._policy, place_of(None, TABLE))))

    def findings(self) -> set[str]:
        """Return the kinds that ``check`` finds."""
        with self._lab.egress.enter():
            return {finding.kind.value for finding in look_once(self._policy)}

    def policy(self, answer: str = "ingress", **keys: object) -> Policy:
        """Return what a configuration with that route means; what is shown from now on is of that."""
        self._policy = read_policy(configured(self._lab, answer, **keys))
        return self._policy


def placeholder(lab: Lab, kind: str, src: Endpoint, dst: Endpoint, device: str = "") -> socket.socket:
    """Return a placeholder of the egress host."""
    return open_placeholder(lab.egress, kind, src, dst, device)


def snapshot(lab: Lab) -> str:
    """Return all of the egress host that routing may change, as text: a route that nobody reads counts as the same."""
    commands = ("ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all", "nft list ruleset")
    shown = [lab.egress.run(command.split()).stdout for command in commands]
    sysctls = lab.egress.run(["sysctl", "-a", "-r", r"^net\.ipv[46]\.(conf\.|.*early_demux|ip_forward)"]).stdout
    return re.sub(r" (expires|cache) \S+", "", "\n".join((*shown, sysctls)))


def works(lab: Lab, port: int, family: int) -> bool:
    """Tell whether an ordinary socket of the egress host gets an answer from a port of the slice."""
    with lab.egress.tcp_connect((SERVERS[family], 443), src=(SOFT[family], port)) as sock:
        return round_trip(sock)
