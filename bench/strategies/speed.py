"""How many connections and leases a second one thread makes, how long each takes, and what it costs the processor."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bench.coexist.load import serve
from bench.coexist.settings import configuration
from bench.strategies.ways import PORT, Way, prepare
from nat_rewriter.config import read_policy
from nat_rewriter.lease import Lessor
from nat_rewriter.model.slices import PortRange
from netns_lab import Lab
from netns_lab.topology import SOFT_ADDRESS

PORTS = PortRange(10_000, 19_999)
CONNECTIONS = 1000
ROUNDS = 6
PATIENCE_S = 5.0
SERVERS = [f"203.0.113.{number}" for number in range(1, 10)]


@dataclass(frozen=True, slots=True)
class Speed:
    """Connections a second, microseconds of each at the middle and at the 99th percentile, processor time of each."""

    per_second: float
    p50_us: float
    p99_us: float
    cpu_us: float


@dataclass(frozen=True, slots=True)
class Bulk:
    """Leases a second that are acquired many at a time, as time passes, and by processor time alone."""

    per_second: float
    per_cpu_second: float


def measure_speed(ways: list[Way]) -> dict[str, Speed]:
    """Return the best that each figure was in rounds that take turns: other work only ever makes one worse."""
    seen: dict[str, list[Speed]] = {way.name: [] for way in ways}
    with _lab() as lab:
        for number in range(ROUNDS):
            for way in ways:
                seen[way.name].append(_speed(way, lab, SERVERS[number % len(SERVERS)]))
    return {name: _best(rounds) for name, rounds in seen.items()}


def _best(rounds: list[Speed]) -> Speed:
    return Speed(
        max(one.per_second for one in rounds),
        *(min(getattr(one, figure) for one in rounds) for figure in ("p50_us", "p99_us", "cpu_us")),
    )


def measure_bulk(strategies: list[str], *, connected: bool = False) -> dict[str, Bulk]:
    """Return how fast leases are acquired in bulk, and with ``connected`` connected one after the other."""
    seen: dict[str, list[Bulk]] = {name: [] for name in strategies}
    with _lab() as lab:
        for _ in range(ROUNDS):
            for name in strategies:
                seen[name].append(_bulk(name, lab, connected))
    return {name: max(rounds, key=lambda one: one.per_second) for name, rounds in seen.items()}


@contextmanager
def _lab() -> Iterator[Lab]:
    """A lab with a server, whose kernel picks ports of the slice too; its connections are this process's."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4 * CONNECTIONS), most))
    with Lab(slices=[f"{SOFT_ADDRESS}:{PORTS}"]) as lab:
        serve(lab.server, PORT)
        lab.egress.sysctl("net.ipv4.ip_local_port_range", "10000 60999")
        yield lab


def _speed(way: Way, lab: Lab, server: str) -> Speed:
    lab.egress.run(["nft", "flush", "ruleset"])
    prepare(way, lab)
    lasted = []
    with way.ready(lab, PORTS) as connect:
        connect(server, PATIENCE_S).close()
        used, began = time.process_time(), time.perf_counter()
        made = []
        for _ in range(CONNECTIONS):
            before = time.perf_counter()
            made.append(connect(server, PATIENCE_S))
            lasted.append(time.perf_counter() - before)
        seconds, used = time.perf_counter() - began, time.process_time() - used
        for one in made:
            one.close()
    _forget(lab)
    percentiles = statistics.quantiles(lasted, n=100)
    return Speed(CONNECTIONS / seconds, percentiles[49] * 1e6, percentiles[98] * 1e6, used / CONNECTIONS * 1e6)


def _bulk(strategy: str, lab: Lab, connected: bool) -> Bulk:
    policy = read_policy(configuration(lab.slices).encode(), "bench")
    with lab.egress.enter(), Lessor(policy) as lessor:
        lessor.acquire("ams-1", (SERVERS[0], PORT), strategy=strategy).release()
        used, began = time.process_time(), time.perf_counter()
        leases = lessor.acquire_many("ams-1", (SERVERS[0], PORT), CONNECTIONS, strategy=strategy)
        for lease in leases if connected else ():
            lease.connect(PATIENCE_S)
        seconds, used = time.perf_counter() - began, time.process_time() - used
    _forget(lab)
    return Bulk(CONNECTIONS / seconds, CONNECTIONS / used)


def _forget(lab: Lab) -> None:
    """Let the next round find what the first one did: no entries, and no sockets in TIME_WAIT."""
    lab.egress.run(["conntrack", "-F"])
    lab.egress.run(["ss", "-K", "state", "time-wait"], check=False)
