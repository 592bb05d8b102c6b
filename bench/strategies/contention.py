"""Half of a slice is held by NAT flows towards one server, and local connections want ports of the same slice."""

from __future__ import annotations

import time
from dataclasses import dataclass
from ipaddress import ip_address

from bench.coexist.load import connects, serve
from bench.coexist.ways import plain
from bench.strategies.ways import PORT, Way, prepare
from nat_rewriter.errors import NatctlError
from nat_rewriter.kernel.conntrack import get_flow
from nat_rewriter.model.slices import PortRange
from nat_rewriter.model.tuples import FlowTuple
from netns_lab import Lab
from netns_lab.topology import CLIENT, SERVER, SOFT_ADDRESS

PORTS = PortRange(9_000, 9_099)
HELD, WANTED = 50, 45
PATIENCE_S = 0.5


@dataclass(frozen=True, slots=True)
class Contention:
    """Connections that worked with the port they believe in, worked with another, and did not; packets that leaked."""

    exact: int
    moved: int
    failed: int
    leaked: int
    longest_ms: float


def contend(way: Way) -> Contention:
    """Hold the flows, then connect one after the other."""
    with Lab(slices=[f"{SOFT_ADDRESS}:{PORTS}"]) as lab:
        serve(lab.server, PORT)
        prepare(way, lab) if way.coexist else plain(lab, PORTS)
        lab.egress.sysctl("net.ipv4.ip_local_port_range", "9000 60999")
        flows = connects(lab.client, CLIENT, SERVER, count=HELD, at_once=HELD, rate=5000, hold=-1, patience=2).outcome()
        assert flows.worked == HELD, f"only {flows.worked} flows could be made"
        believed, longest, failed = [], 0.0, 0
        made = []
        with way.ready(lab, PORTS) as connect:
            for _ in range(WANTED):
                began = time.perf_counter()
                try:
                    made.append(connect(SERVER, PATIENCE_S))
                    believed.append(made[-1].port())
                except (NatctlError, TimeoutError):
                    failed += 1
                longest = max(longest, time.perf_counter() - began)
            exact = sum(_wire_port(port) == port for port in believed)
            for one in made:
                one.close()
        return Contention(exact, len(believed) - exact, failed, lab.leaks().total, longest * 1e3)


def _wire_port(port: int) -> int | None:
    """Return the port on the wire of a connection from a port."""
    flow = get_flow(FlowTuple("tcp", ip_address(SOFT_ADDRESS), port, ip_address(SERVER), PORT))
    return flow.reply.dport if flow else None
