"""An egress host between two ends that send prepared frames and swallow what arrives."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from bench.coexist.load import packets
from nat_rewriter.model.slices import PortRange, Protocol, Slice
from netns_lab import Host, Lab
from netns_lab.topology import CLIENT, CLIENT_6, CLIENT_LINK, DOWNLINK, SERVER, SERVER_6, SOFT_ADDRESS, SOFT_ADDRESS_6
from netns_lab.topology import UPLINK as EGRESS_UPLINK

FLOWS = 1024
PORTS_EACH = 512
FIRST_PORT = 10_240
SLICES_AN_ADDRESS = 100
DESTINATION_PORT = 20_000
FIRST_FRAMES = 9_600
FIRST_CLIENT = {4: ip_address("10.1.0.1"), 6: ip_address("2001:db8:10:1::1")}
CLIENTS = {4: "10.1.0.0/16", 6: "2001:db8:10:1::/64"}
_CLIENT = {4: CLIENT, 6: CLIENT_6}
_GATEWAY = {4: "100.64.0.1", 6: "2001:db8:fffe::1"}
_SERVER = {4: SERVER, 6: SERVER_6}
_FIRST_SOFT = {4: ip_address(SOFT_ADDRESS), 6: ip_address(SOFT_ADDRESS_6)}
SINK = "table netdev sink {{ counter taken {{ }}; chain c {{ type filter hook ingress device {} priority 0; {}; }}; }}"

Address = IPv4Address | IPv6Address


class NotMeasured(Exception):
    """Packets did not go the way that was to be measured."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How many slices, of which IP version."""

    family: int
    count: int

    @property
    def slices(self) -> list[Slice]:
        """Equal slices, next to one another."""
        return [self._slice(number) for number in range(self.count)]

    def _slice(self, number: int) -> Slice:
        first = FIRST_PORT + number % SLICES_AN_ADDRESS * PORTS_EACH
        ports = (PortRange(first, first + PORTS_EACH - 1),)
        return Slice(f"s{number}", soft(self.family, number // SLICES_AN_ADDRESS), ports, (Protocol.TCP, Protocol.UDP))

    def client(self, number: int) -> Address:
        """Return the address of a client; each has the slice of its number."""
        return FIRST_CLIENT[self.family] + number


def soft(family: int, number: int) -> Address:
    """Return a soft-unicast address."""
    return _FIRST_SOFT[family] + number


@dataclass(frozen=True, slots=True)
class Place:
    """A lab that is ready to be measured. ``wire``: one address for all flows, where one rule rewrites all of them."""

    lab: Lab
    shape: Shape
    wire: Address | None
    to_egress: tuple[str, str]  # Ethernet addresses of the egress host, towards the clients and towards the server

    def establish(self) -> None:
        """Let every flow begin, be answered, and go on."""
        for send in (self.send_out, self.send_back, self.send_out):
            send(1)

    def send_out(self, rounds: int) -> float:
        """Send packets of the flows from the clients; return the nanoseconds of each."""
        lines = [self._line(self.shape.client(of), port, self._server, to) for of, port, to in self._flows()]
        return self._send(self.lab.client, "eth0", self.to_egress[0], lines, rounds)

    def send_back(self, rounds: int) -> float:
        """Send packets of the flows from the server; return the nanoseconds of each."""
        lines = [self._line(self._server, to, self._wire(of), port) for of, port, to in self._flows()]
        return self._send(self.lab.upstream, DOWNLINK, self.to_egress[1], lines, rounds)

    def send_first(self, **options: object) -> float:
        """Send first packets of flows from as many clients as there are slices, all different; nanoseconds of each."""
        before = taken(self.lab.upstream)
        spent = packets(
            self.lab.client, device="eth0", gateway=self.to_egress[0], source=str(self.shape.client(0)),
            sources=self.shape.count, to=self._server, destinations=9, count=FIRST_FRAMES, cpu=0, **options,
        )  # fmt: skip
        self._all_taken(self.lab.upstream, before, FIRST_FRAMES)
        return spent

    def forget(self) -> None:
        """End all flows. Conntrack's hash table is shared by all namespaces: what one leaves, the others pay for."""
        self.lab.egress.run(["conntrack", "-F"])
        self.lab.egress.run(
            ["nft", "flush", "set", "inet", "natctl", f"claims{self.shape.family}"], check=False
        )  # fmt: skip

    @property
    def _server(self) -> str:
        return _SERVER[self.shape.family]

    def _flows(self) -> Iterator[tuple[int, int, int]]:
        """Yield client, its port (one of its slice, which is kept), and the server's port of each flow."""
        for number in range(FLOWS):
            of = number * self.shape.count // FLOWS
            first = FIRST_PORT + of % SLICES_AN_ADDRESS * PORTS_EACH
            yield of, first + number % (PORTS_EACH // 2), DESTINATION_PORT + number

    def _wire(self, client: int) -> Address:
        return self.wire or soft(self.shape.family, client // SLICES_AN_ADDRESS)

    @staticmethod
    def _line(source: object, port: int, to: object, to_port: int) -> str:
        return f"{source} {port} {to} {to_port}\n"

    def _send(self, host: Host, device: str, gateway: str, lines: list[str], rounds: int) -> float:
        other = self.lab.upstream if host is self.lab.client else self.lab.client
        before = taken(other)
        spent = packets(host, flows="".join(lines), device=device, gateway=gateway, rounds=rounds, cpu=0)
        self._all_taken(other, before, rounds * FLOWS)
        return spent

    def _all_taken(self, host: Host, before: int, sent: int) -> None:
        if (arrived := taken(host) - before) < sent:
            raise NotMeasured(f"{arrived} of {sent} packets arrived: {self.lab.egress.name}")


@contextmanager
def place(shape: Shape, wire: Address | None = None) -> Iterator[Place]:
    """Give a lab whose ends count and drop what arrives, so that the egress host's work is nearly all that is done."""
    addresses = sorted({owned.address for owned in shape.slices})
    with Lab(slices=[f"{'[%s]' if shape.family == 6 else '%s'}:10240-61439" % each for each in addresses]) as lab:
        hardware = {name: _ethernet(host, name) for host, name in _links(lab)}
        family = shape.family
        egress = [
            f"neigh replace {_CLIENT[family]} lladdr {hardware['eth0']} dev {CLIENT_LINK} nud permanent",
            f"neigh replace {_GATEWAY[family]} lladdr {hardware[DOWNLINK]} dev {EGRESS_UPLINK} nud permanent",
            f"route replace {CLIENTS[family]} via {_CLIENT[family]} dev {CLIENT_LINK}",
        ]
        lab.egress.run(["ip", "-batch", "-"], input="\n".join(egress) + "\n")
        for host, link in ((lab.client, "eth0"), (lab.upstream, DOWNLINK)):
            host.nft(SINK.format(link, "counter name taken drop"))
        yield Place(lab, shape, wire, (hardware[CLIENT_LINK], hardware[EGRESS_UPLINK]))


def taken(host: Host) -> int:
    """Return how many packets arrived at an end."""
    listed = json.loads(host.run(["nft", "-j", "list", "counter", "netdev", "sink", "taken"]).stdout)
    return next(int(one["counter"]["packets"]) for one in listed["nftables"] if "counter" in one)


def _links(lab: Lab) -> Iterator[tuple[Host, str]]:
    yield from ((lab.client, "eth0"), (lab.upstream, DOWNLINK), (lab.egress, CLIENT_LINK), (lab.egress, EGRESS_UPLINK))


def _ethernet(host: Host, link: str) -> str:
    found = re.search(r"link/ether (\S+)", host.run(["ip", "link", "show", link]).stdout)
    if found is None:
        raise NotMeasured(f"no Ethernet address of {link}")
    return found[1]
