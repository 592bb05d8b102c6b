"""A cluster of three members on loopback, pools of any size, and what all of it costs the machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

from nat_rewriter.model.pools import Pool, StoreAddress
from nat_rewriter.model.slices import PortRange
from netns_lab.etcd_cluster import Cluster, loopback

POOL, PREFIX = "fleet", "natctl"
SLICE_SIZE = 1024
BLOCKS_OF_ADDRESS = 63
_TICKS_S = os.sysconf("SC_CLK_TCK")
_FIRST = ip_address("198.18.0.0")


def pool_of(slices: int, *, ttl_s: int = 30, hold_down_s: int = 120, per_host: int = 128) -> Pool:
    """Return a pool of at least so many slices."""
    addresses = tuple(_FIRST + number for number in range(-(-slices // BLOCKS_OF_ADDRESS)))
    ports = PortRange(1024, 65535)
    return Pool(POOL, addresses, ports, SLICE_SIZE, per_host=per_host, ttl_s=ttl_s, hold_down_s=hold_down_s)


@contextmanager
def cluster(members: int = 3, *options: str) -> Iterator[Cluster]:
    """Run a cluster on this machine's disk for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as directory, Cluster(Path(directory), loopback(members), options) as running:
        yield running


def store_of(running: Cluster, first: int = 0, timeout_s: int = 20) -> StoreAddress:
    """Return the store of a cluster, for a host that asks one of its members first."""
    endpoints = running.endpoints
    start = first % len(endpoints)
    return StoreAddress("etcd", endpoints=endpoints[start:] + endpoints[:start], prefix=PREFIX, timeout_s=timeout_s)


def processor_s(running: Cluster) -> float:
    """Return the processor time that the members have used so far."""
    return sum(_processor_s(member.pid) for member in running.members)


def resident_mib(running: Cluster) -> list[float]:
    """Return the memory of each member."""
    return [_resident_kib(member.pid) / 1024 for member in running.members]


def _processor_s(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / _TICKS_S


def _resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
