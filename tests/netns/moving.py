"""Two egress hosts between one client and one server, either of which may have the flows; and flows that never rest."""

from __future__ import annotations

import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path

from netns_lab import namespaces
from netns_lab.host import Completed, Host
from netns_lab.servers import Endpoint

SERVER, SERVER_6 = "203.0.113.1", "2001:db8:203::1"
SOFT, SOFT_6 = "198.51.100.10", "2001:db8:100::10"
CLIENT, CLIENT_6 = "10.0.0.2", "2001:db8:10::2"
EGRESS = ("egress-a", "egress-b")
_PAUSE_S = 0.3  # between an answer and the next question of a flow


class Pair:
    """Client, server and the two hosts; the client's packets, and the answers, take the way of one of these."""

    def __init__(self, resources: ExitStack) -> None:
        lab = namespaces.unique_name("moving")
        names = {host: namespaces.namespace_name(lab, host) for host in ("client", "server", *EGRESS)}
        for name in names.values():
            resources.callback(namespaces.delete, name)
            namespaces.create(name)
        hosts = {host: Host(name, resources) for host, name in names.items()}
        self.client, self.server = hosts["client"], hosts["server"]
        self.egress = {name: hosts[name] for name in EGRESS}
        for host in hosts.values():
            host.run(["sh", "-c", _SYSCTLS])
        for number, name in enumerate(EGRESS, 1):
            self._wire(number, self.egress[name])
        _ip(self.client, f"link set lo up\naddress add {CLIENT}/32 dev lo\naddress add {CLIENT_6}/128 dev lo nodad")
        _ip(self.server, f"link set lo up\naddress add {SERVER}/32 dev lo\naddress add {SERVER_6}/128 dev lo nodad")
        self.go_by("egress-a")

    def go_by(self, name: str) -> None:
        """Send what the client has to say, and what is for the shared addresses, to one of the hosts."""
        number = 1 + EGRESS.index(name)
        _ip(
            self.client,
            f"route replace default via 10.1.{number}.1 src {CLIENT}\n"
            f"-6 route replace default via fd01:{number}::1 src {CLIENT_6}",
        )
        _ip(
            self.server,
            f"route replace {SOFT} via 10.2.{number}.1 src {SERVER}\n"
            f"-6 route replace {SOFT_6} via fd02:{number}::1 src {SERVER_6}",
        )

    def natctl(self, name: str, *words: str | Path, input: str | None = None, check: bool = True) -> Completed:
        """Run natctl on one of the hosts."""
        return self.egress[name].run(
            [sys.executable, "-m", "nat_rewriter", *map(str, words)], input=input, check=check, timeout_s=120
        )

    def _wire(self, number: int, egress: Host) -> None:
        for end, host in ((1, self.client), (2, self.server)):
            _ip(egress, f"link add to{end} type veth peer name to{number} netns {host.name}")
            _ip(host, f"link set to{number} up\n{_addresses(f'to{number}', end, number, 2)}")
            _ip(egress, f"link set to{end} up\n{_addresses(f'to{end}', end, number, 1)}")
        _ip(
            egress,
            f"link set lo up\naddress add {SOFT}/32 dev lo\naddress add {SOFT_6}/128 dev lo nodad\n"
            f"route add {CLIENT} via 10.1.{number}.2\n-6 route add {CLIENT_6} via fd01:{number}::2\n"
            f"route add default via 10.2.{number}.2\n-6 route add default via fd02:{number}::2",
        )


_SYSCTLS = """
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
for name in all default; do
    echo 0 > /proc/sys/net/ipv4/conf/$name/rp_filter
    echo 0 > /proc/sys/net/ipv6/conf/$name/accept_dad
done
"""


def _addresses(device: str, end: int, number: int, host: int) -> str:
    return (
        f"address add 10.{end}.{number}.{host}/24 dev {device}\n"
        f"address add fd0{end}:{number}::{host}/64 dev {device} nodad"
    )


def _ip(host: Host, commands: str) -> None:
    four = [line for line in commands.splitlines() if not line.startswith("-6 ")]
    six = [line.removeprefix("-6 ") for line in commands.splitlines() if line.startswith("-6 ")]
    for family, lines in (("-4", four), ("-6", six)):
        if lines:
            host.run(["ip", family, "-batch", "-"] if family == "-6" else ["ip", "-batch", "-"], input="\n".join(lines))


@contextmanager
def pair() -> Iterator[Pair]:
    """Make the hosts, and take them away."""
    with ExitStack() as resources:
        yield Pair(resources)


class Flow:
    """One flow that asks an echo server again and again, and checks each answer; ``longest_s``: it waited for one."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock, self.number, self.answers = sock, number, 0
        self.due, self.longest_s = 0.0, 0.0
        self._left, self._asked = b"", 0.0

    def ask(self) -> None:
        self._asked = time.monotonic()
        self._left = f"{self.number}:{self.answers};".encode() * 8
        self.sock.send(self._left)

    def hear(self, now: float) -> None:
        heard = self.sock.recv(4096)
        if not heard or not self._left.startswith(heard):
            raise ConnectionError(f"flow {self.number} heard {heard!r}, expected {self._left!r}")
        self._left = self._left[len(heard) :]
        if not self._left:
            self.answers += 1
            self.longest_s = max(self.longest_s, now - self._asked)
            self.due = now + _PAUSE_S


class Flows:
    """Flows that go on until they are stopped; ``faults``: those that were reset, closed, or heard something else."""

    def __init__(self, client: Host, ends: Sequence[Endpoint], each: int) -> None:
        self.faults: list[str] = []
        targets = list(product(range(each), ends))
        self.flows = [Flow(client.tcp_connect(end, timeout_s=10), number) for number, (_, end) in enumerate(targets)]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._talk, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let them rest."""
        self._stopped.set()
        self._thread.join()

    def all_go_on(self, patience_s: float = 30.0) -> None:
        """Wait until each flow has heard two more answers; fail where one was lost."""
        before = [flow.answers for flow in self.flows]
        end = time.monotonic() + patience_s
        while any(flow.answers < count + 2 for flow, count in zip(self.flows, before, strict=True)):
            assert not self.faults, self.faults[:5]
            silent = [flow.number for flow, count in zip(self.flows, before, strict=True) if flow.answers == count]
            assert time.monotonic() < end, f"{len(silent)} flows are silent: {silent[:10]}"
            time.sleep(0.05)
        assert not self.faults, self.faults[:5]

    def _talk(self) -> None:
        with selectors.DefaultSelector() as selector:
            for flow in self.flows:
                flow.sock.setblocking(False)
                selector.register(flow.sock, selectors.EVENT_READ, flow)
            while not self._stopped.is_set():
                self._ask(selector)
                for key, _ in selector.select(0.02):
                    self._try(selector, key.data, lambda flow: flow.hear(time.monotonic()))

    def _ask(self, selector: selectors.BaseSelector) -> None:
        now = time.monotonic()
        for flow in [flow for flow in self.flows if flow.due <= now]:
            flow.due = float("inf")
            self._try(selector, flow, Flow.ask)

    def _try(self, selector: selectors.BaseSelector, flow: Flow, step: object) -> None:
        assert callable(step)
        try:
            step(flow)
        except OSError as error:
            self.faults.append(f"flow {flow.number}: {error}")
            flow.due = float("inf")
            selector.unregister(flow.sock)
