"""What a scenario acts on: a lab, natctl, traffic, and somebody who tells what was expected and what was seen."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nat_rewriter.errors import EXIT_DONE, EXIT_FOUND, NatctlError
from nat_rewriter.model.slices import PortRange
from netns_lab import app
from netns_lab.capture import SYN, Capture, Packet
from netns_lab.host import end_process, round_trip
from netns_lab.lab import Lab, Outcome
from netns_lab.narrator import Narrator
from netns_lab.story import Story
from netns_lab.topology import DOWNLINK, SERVER, SERVER_6, SOFT_ADDRESS, SOFT_ADDRESS_6

SLICE = PortRange(9000, 9009)
TCP_PORT, UDP_PORT = 443, 53
# What connect() or send() says when the tuple is taken; and how soon is at once.
REFUSAL = {"tcp": "Connection refused", "udp": "Operation not permitted"}
AT_ONCE_S = 0.5


@dataclass(frozen=True, slots=True)
class Flow:
    """Traffic of a client through the egress host: its socket, the port it has on the wire, and whether it works."""

    socket: socket.socket
    wire_port: int | None
    works: bool

    def talks(self) -> bool:
        """Tell whether it works still."""
        return round_trip(self.socket)


@dataclass(frozen=True, slots=True)
class LocalApp:
    """An application on the egress host: what it believes, and the port that it really has on the wire."""

    process: subprocess.Popen[str]
    port: int
    works: bool
    error: str
    seconds: float
    wire_port: int | None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def end(self) -> None:
        """Let it close its socket and end."""
        end_process(self.process)


class Stage(Story):
    """A lab with servers on TCP port 443 and UDP port 53, and the verbs that scenarios are written in."""

    def __init__(self, lab: Lab, narrator: Narrator) -> None:
        super().__init__(narrator)
        self.lab = lab
        self.tcp_server = lab.server.tcp_server(TCP_PORT)
        self.udp_server = lab.server.udp_server(UDP_PORT)
        self._wire = lab.upstream.capture(DOWNLINK)

    def apply(
        self, *, coexist: str, guard: str = "off", slice_keys: str = "", snat_keys: str = "", extra: str = ""
    ) -> None:
        """Configure the egress host for all slices and clients of the lab: ``natctl apply``.

        ``slice_keys`` and ``snat_keys`` are lines for each ``[[slice]]`` and ``[[snat]]``; ``extra`` comes at the end.
        """
        keys = {"slice_keys": slice_keys, "snat_keys": snat_keys, "extra": extra}
        self._apply(
            self.lab.config(coexist=coexist, guard=guard, **keys),
            f"coexist = {coexist}, guard = {guard}",
            keys.values(),
        )

    def apply_text(self, text: str) -> None:
        """Configure the egress host with a whole configuration: ``natctl apply``."""
        self._apply(self.lab.config_file(text), "which says:", [text])

    def _apply(self, config: Path, remark: str, told: Iterable[str]) -> None:
        self._config = config
        self._narrator.command(f"natctl apply --config natctl.toml   # {remark}")
        for line in "\n".join(told).splitlines():
            if line:
                self._narrator.say(f"  {line}")
        self.lab.natctl("apply", "--config", config, expect=EXIT_DONE)

    def remove(self) -> None:
        """Take natctl's state out of the egress host: ``natctl remove``."""
        self._narrator.command("natctl remove --config natctl.toml")
        self.lab.natctl("remove", "--config", self._config, expect=EXIT_DONE)

    def forget(self, protocol: str, address: str, port: int) -> None:
        """Delete the conntrack entry of a local socket, which would keep its port on the wire: ``conntrack -D``."""
        self.run("conntrack", "-D", "-p", protocol, "--orig-src", address, "--orig-port-src", str(port))

    def run(self, *words: str) -> None:
        """Run a command on the egress host."""
        self._narrator.command(" ".join(words))
        self.lab.egress.run(words)

    def natctl(self, *words: str) -> Outcome:
        """Run another command of natctl with the configuration that was applied."""
        self._narrator.command(f"natctl {' '.join(words)} --config natctl.toml")
        return self.lab.natctl(*words, "--config", self._config, expect=EXIT_DONE)

    def check(self, *kinds: str) -> list[dict[str, Any]]:
        """Run ``natctl check``, expect findings of these kinds and no others, and return them."""
        self._narrator.command("natctl check --config natctl.toml")
        outcome = self.lab.natctl("check", "--json", "--config", self._config)
        if outcome.exit_code not in (EXIT_DONE, EXIT_FOUND):
            raise NatctlError("natctl check", outcome.stderr.strip() or f"exit code {outcome.exit_code}")
        findings: list[dict[str, Any]] = outcome.lines()
        for finding in findings:
            self._narrator.finding(finding)
        self.expect("findings", _listed(finding["kind"] for finding in findings), _listed(kinds))
        self.expect("exit code of natctl check", outcome.exit_code, EXIT_FOUND if kinds else EXIT_DONE)
        return findings

    def client_flow(
        self, protocol: str = "tcp", *, server: str = SERVER, src: tuple[str, int] | None = None, timeout_s: float = 2.0
    ) -> Flow:
        """Let a client talk to the server, through the egress host."""
        seen = len(self._wire.packets())
        try:
            if protocol == "tcp":
                sock = self.lab.client.tcp_connect((server, TCP_PORT), src=src, timeout_s=timeout_s)
            else:
                sock = self.lab.client.udp_connect((server, UDP_PORT), src=src, timeout_s=timeout_s)
            works = round_trip(sock)
        except OSError:
            sock, works = socket.socket(), False
        return Flow(sock, self.wire_port(protocol, server, after=seen), works)

    def local_app(self, port: int, protocol: str = "tcp", *, server: str = SERVER, timeout_s: float = 2.0) -> LocalApp:
        """Start an application on the egress host that binds a port of the slice and talks to the server."""
        seen = len(self._wire.packets())
        dport = TCP_PORT if protocol == "tcp" else UDP_PORT
        words = [protocol, soft_address(server), port, server, dport, timeout_s]
        process = self.lab.egress.popen([sys.executable, app.__file__, *map(str, words)], stdin=-1)
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        if not line:
            raise NatctlError("start the local application", process.stderr.read().strip())
        said = json.loads(line)
        wire_port = self.wire_port(protocol, server, after=seen)
        return LocalApp(process, wire_port=wire_port, **said)

    def flows(self, *filters: str, told: bool = True) -> list[dict[str, Any]]:
        """Return what ``natctl flows`` lists, with filters as on its command line."""
        if told:
            self._narrator.command(" ".join(["natctl flows --config natctl.toml", *filters]))
        outcome = self.lab.natctl("flows", "--json", "--config", self._config, *filters, expect=EXIT_DONE)
        listed: list[dict[str, Any]] = outcome.lines()
        return listed

    def status(self) -> dict[str, Any]:
        """Return what ``natctl status`` shows."""
        self._narrator.command("natctl status --config natctl.toml")
        outcome = self.lab.natctl("status", "--json", "--config", self._config)
        if outcome.exit_code not in (EXIT_DONE, EXIT_FOUND):
            raise NatctlError("natctl status", outcome.stderr.strip() or f"exit code {outcome.exit_code}")
        shown: dict[str, Any] = outcome.json()
        return shown

    def strays(self) -> list[dict[str, Any]]:
        """Return what the guard caught, as ``natctl status`` lists it."""
        strays: list[dict[str, Any]] = self.status()["strays"]
        for stray in strays:
            wire = stray["tuple"]
            ends = f"{wire['src']} port {wire['sport']} to {wire['dst']} port {wire['dport']}"
            self._narrator.say(f"  caught: {stray['protocol']} {ends}, {stray['packets']} packets")
        return strays

    def wire_port(self, protocol: str, server: str = SERVER, *, after: int = 0) -> int | None:
        """Return the source port, or echo id, of the first packet to the server after so many captured; None if none.

        It is read from the cable between egress host and upstream, so that nobody's word is taken for it.
        """
        packets = self._wire.packets()[after:]
        return next((packet.tuple.sport for packet in packets if _opens(packet, protocol, server)), None)

    @property
    def wire(self) -> Capture:
        """All that passed between egress host and upstream."""
        return self._wire


def _opens(packet: Packet, protocol: str, server: str) -> bool:
    """Tell whether a packet begins something; of TCP a SYN, since acknowledgements of older flows come late."""
    wanted = packet.tuple.protocol == protocol and str(packet.tuple.dst) == server
    return wanted and (protocol != "tcp" or bool(packet.flags & SYN))


def soft_address(server: str) -> str:
    """Return the soft-unicast address of the same IP version as a server's address."""
    return SOFT_ADDRESS_6 if server == SERVER_6 or ":" in server else SOFT_ADDRESS


def _listed(kinds: Any) -> str:
    return ", ".join(sorted(kinds)) or "none"
