"""How many connections and leases a second one thread makes, how long each takes, and what it costs the processor."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.coexist.load import program, serve
from bench.coexist.settings import apply, configuration
from bench.strategies.ways import PORT, Way, prepare
from nat_rewriter.config import read_policy
from nat_rewriter.lease import Lessor
from nat_rewriter.model.slices import PortRange
from netns_lab import Lab
from netns_lab.topology import SOFT_ADDRESS

SOURCES = Path(__file__).parent / "native"
PORTS = PortRange(10_000, 19_999)
CONNECTIONS, LEASES = 400, 1000
ROUNDS = 12
NATIVE = {"plain sockets in C, confine": False, "IP_LOCAL_PORT_RANGE in C, confine": True}  # whether in a range
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
    seen: dict[str, list[Speed]] = {name: [] for name in (*(way.name for way in ways), *NATIVE)}
    with _lab() as lab:
        for number in range(ROUNDS):
            server = SERVERS[number % len(SERVERS)]
            for way in ways:
                seen[way.name].append(_speed(way, lab, server))
            for name, in_range in NATIVE.items():
                seen[name].append(_native_speed(lab, server, in_range))
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
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4 * LEASES), most))
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
    return _figures(lasted, seconds, used)


def _native_speed(lab: Lab, server: str, in_range: bool) -> Speed:
    """The same by a program in C, under confine."""
    lab.egress.run(["nft", "flush", "ruleset"])
    apply(lab, configuration(lab.slices))
    ends = [SOFT_ADDRESS, PORTS.first, server, PORT, CONNECTIONS]
    command = [program("plain", SOURCES), *ends, *([PORTS.last] if in_range else [])]
    seconds, used, *lasted_ns = map(float, lab.egress.run([str(word) for word in command]).stdout.split())
    _forget(lab)
    return _figures([each / 1e9 for each in lasted_ns], seconds, used)


def _figures(lasted: list[float], seconds: float, used: float) -> Speed:
    percentiles = statistics.quantiles(lasted, n=100)
    return Speed(CONNECTIONS / seconds, percentiles[49] * 1e6, percentiles[98] * 1e6, used / CONNECTIONS * 1e6)


def _bulk(strategy: str, lab: Lab, connected: bool) -> Bulk:
    policy = read_policy(configuration(lab.slices).encode(), "bench")
    with lab.egress.enter(), Lessor(policy) as lessor:
        lessor.acquire("ams-1", (SERVERS[0], PORT), strategy=strategy).release()
        used, began = time.process_time(), time.perf_counter()
        leases = lessor.acquire_many("ams-1", (SERVERS[0], PORT), LEASES, strategy=strategy)
        for lease in leases if connected else ():
            lease.connect(PATIENCE_S)
        seconds, used = time.perf_counter() - began, time.process_time() - used
    _forget(lab)
    return Bulk(LEASES / seconds, LEASES / used)


def _forget(lab: Lab) -> None:
    """Let the next round find what the first one did: no entries, and no sockets in TIME_WAIT."""
    lab.egress.run(["conntrack", "-F"])
    lab.egress.run(["ss", "-K", "state", "time-wait"], check=False)
