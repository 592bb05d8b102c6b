"""What tests of leases share: a lab with natctl applied, a lessor on its egress host, and who might collide."""

from __future__ import annotations

import errno
import itertools
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from bench.coexist.settings import apply, configuration
from nat_rewriter.config import read_policy
from nat_rewriter.kernel.conntrack import get_flow
from nat_rewriter.lease import Lease, Lessor
from nat_rewriter.model.flows import Flow
from nat_rewriter.model.tuples import FlowTuple
from netns_lab import Lab
from netns_lab.servers import EchoServer
from netns_lab.topology import CLIENT, CLIENT_6, SERVER, SERVER_6, SOFT_ADDRESS, SOFT_ADDRESS_6

SLICES = {4: "ams-1", 6: "ams-2"}
SERVERS = {4: SERVER, 6: SERVER_6}
SOFT = {4: SOFT_ADDRESS, 6: SOFT_ADDRESS_6}
CLIENTS = {4: CLIENT, 6: CLIENT_6}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


_ports = itertools.count(1000)


@dataclass(frozen=True)
class Desk:
    """A lessor, the lab it works in, and a port of the servers that no test has used before."""

    lab: Lab
    lessor: Lessor
    port: int
    servers: Mapping[str, EchoServer]

    def to(self, family: int = 4) -> tuple[str, int]:
        return SERVERS[family], self.port

    def acquire(self, strategy: str, family: int = 4, protocol: str = "tcp", port: int | None = None) -> Lease:
        return self.lessor.acquire(SLICES[family], self.to(family), protocol=protocol, strategy=strategy, port=port)

    def connect(self, strategy: str, family: int = 4, protocol: str = "tcp", timeout_s: float = 5) -> Lease:
        return self.lessor.connect(
            SLICES[family], self.to(family), protocol=protocol, strategy=strategy, timeout_s=timeout_s
        )

    def nat_flow(self, wanted: int, family: int = 4, protocol: str = "tcp") -> tuple[int, socket.socket]:
        """Let the client send from that port, which NAT keeps where it is free; return the port on the wire."""
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        near = self.lab.client.open_socket(kind, FAMILIES[family])
        near.settimeout(5)
        near.bind((CLIENTS[family], wanted))
        near.connect(self.to(family))
        near.sendall(b"natctl")
        assert near.recv(6) == b"natctl"
        with self.lab.egress.enter():
            flow = get_flow(FlowTuple(protocol, address(CLIENTS[family]), wanted, address(SERVERS[family]), self.port))
        assert flow is not None
        return flow.reply.dport, near

    def flow_of(self, lease: Lease) -> Flow | None:
        with self.lab.egress.enter():
            return get_flow(lease.tuple)

    def entries(self, protocol: str = "tcp") -> list[str]:
        """The conntrack entries of the egress host that come from a slice, as conntrack prints them."""
        listed = self.lab.egress.run(["conntrack", "-L", "-p", protocol], check=False).stdout
        listed += self.lab.egress.run(["conntrack", "-L", "-f", "ipv6", "-p", protocol], check=False).stdout
        return [line for line in listed.splitlines() if any(self._original(line, family) for family in SOFT)]

    def _original(self, line: str, family: int) -> bool:
        first = line.partition(" dport=")
        return f" src={SOFT[family]} dst=" in first[0] and first[2].split()[0] == str(self.port)

    def sockets(self) -> list[str]:
        """The sockets of the egress host with an address of a slice, as ss prints them."""
        listed = self.lab.egress.run(["ss", "-Hantu"]).stdout
        here = [line for line in listed.splitlines() if any(soft in line for soft in SOFT.values())]
        return [line for line in here if line.split()[-1].endswith(f":{self.port}")]


@contextmanager
def shared_lab() -> Iterator[Lab]:
    """Make a lab with natctl applied, for all tests of a module: each has a destination of its own in it."""
    with Lab() as lab:
        apply(lab, configuration(lab.slices))
        yield lab


@contextmanager
def desk(lab: Lab, *, coexist: str = "confine", term_s: int = 15, verify: bool | None = None) -> Iterator[Desk]:
    """Yield a lessor on the egress host, whose configuration is applied already, and echo servers for it."""
    forget_flows(lab)
    policy = read_policy(configuration(lab.slices, coexist=coexist).encode(), "test")
    port = next(_ports)
    servers = {"tcp": lab.server.tcp_server(port), "udp": lab.server.udp_server(port)}
    with lab.egress.enter(), Lessor(policy, term_s=term_s, verify=verify) as lessor:
        yield Desk(lab, lessor, port, servers)
    for server in servers.values():
        server.close()


def forget_flows(lab: Lab) -> None:
    """Empty the conntrack table: NAT gives a client's port the place it has already (find_appropriate_src())."""
    lab.egress.run(["conntrack", "-F"])


@contextmanager
def sysctl(lab: Lab, name: str, value: object) -> Iterator[None]:
    """Set a sysctl of the egress host for a while."""
    before = lab.egress.run(["sysctl", "-n", name]).stdout.strip()
    lab.egress.sysctl(name, value)
    yield
    lab.egress.sysctl(name, before)


def reset(sock: socket.socket) -> None:
    """Close a socket so that nothing of its connection is left."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def address(text: str) -> IPv4Address | IPv6Address:
    return IPv6Address(text) if ":" in text else IPv4Address(text)


def newcomer(lab: Lab, lease: Lease, *, shares: bool = True) -> int:
    """Let another socket of the host bind the leased port and connect to the same destination; return the errno."""
    kind = socket.SOCK_STREAM if lease.way.protocol == "tcp" else socket.SOCK_DGRAM
    with lab.egress.enter(), socket.socket(FAMILIES[lease.way.src.version], kind) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(shares))
        other.settimeout(5)
        try:
            other.bind((str(lease.way.src), lease.port))
            other.connect((str(lease.way.dst), lease.way.dport))
            if kind == socket.SOCK_STREAM:
                reset(other)
        except OSError as error:
            return error.errno or errno.EIO
    return 0


def works(sock: socket.socket) -> bool:
    """Tell whether an echo server answers."""
    sock.settimeout(5)
    sock.sendall(b"natctl")
    return sock.recv(6) == b"natctl"


PORTS = range(9000, 9010)
