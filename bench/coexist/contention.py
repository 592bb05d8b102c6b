"""Half of a slice is held by flows of clients towards one server, and local sockets want ports of the same slice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.coexist.load import Outcome, connects, serve
from bench.coexist.settings import socket_half
from bench.coexist.ways import Way
from nat_rewriter.model.slices import PortRange
from netns_lab import Lab
from netns_lab.topology import CLIENT, SERVER, SOFT_ADDRESS

PATIENCE_S = 2.0
HELD_SHARE, WANTED_SHARE = 0.50, 0.45
SOCKETS_A_SECOND = 1500


@dataclass(frozen=True, slots=True)
class Contention:
    """What was seen. ``*_cpu_us``: processor time per connection that works, of all processes along its way."""

    flows: Outcome
    sockets: Outcome
    leaked: int
    flow_cpu_us: float
    socket_cpu_us: float


def contend(way: Way, ports: PortRange) -> Contention:
    """Hold the flows, then connect the sockets, in a lab of its own."""
    with Lab(slices=[f"{SOFT_ADDRESS}:{ports}"]) as lab:
        server = serve(lab.server).pid
        processes = [server, *way.set_up(lab, ports)]
        held, wanted = (round(len(ports) * share) for share in (HELD_SHARE, WANTED_SHARE))
        if way.splits:  # of their own half, so that a few ports stay free on both sides
            held = wanted
        before = _cpu_us(processes)
        running = connects(
            lab.client, CLIENT, SERVER, count=held, at_once=held, rate=5000, hold=-1, patience=PATIENCE_S
        )
        flows = running.outcome()
        between = _cpu_us(processes)
        sockets = connects(
            lab.egress, SOFT_ADDRESS, SERVER, count=wanted, at_once=wanted, rate=SOCKETS_A_SECOND, hold=-1,
            retries=1000, patience=PATIENCE_S, ports=socket_half(ports) if way.splits else ports,
        ).outcome()  # fmt: skip
        after = _cpu_us(processes)
        return Contention(
            flows, sockets, lab.leaks().total, _each(flows, between - before), _each(sockets, after - between)
        )


def _each(outcome: Outcome, others_cpu_us: float) -> float:
    return (outcome.cpu_us + others_cpu_us) / max(1, outcome.worked)


def _cpu_us(processes: list[int]) -> float:
    """Return the processor time of processes so far, of all their threads."""
    threads = (thread for process in processes for thread in Path(f"/proc/{process}/task").iterdir())
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e3
