"""Flows as an egress host has them, made up: batches of merged records, and batches of conntrack events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

import numpy as np

from nat_rewriter.history.records import EndMark, Records, StartMark, Trait, empty

START_NS = 1_790_000_000_000_000_000
_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Traffic:
    """16 soft-unicast addresses, 20,000 clients, 50,000 servers of which few are popular."""

    rate: int = 20_000  # flows a second
    addresses: int = 16
    first_address: int = int(IPv4Address("198.51.100.0"))
    clients: int = 20_000
    servers: int = 50_000

    def batches(self, count: int, size: int, seed: int = 1) -> Iterator[Records]:
        """Yield ``count`` closed flows in the order of their starts, ``size`` at a time."""
        chance = np.random.default_rng(seed)
        for first in range(0, count, size):
            yield self._batch(chance, first, min(size, count - first))

    def _batch(self, chance: np.random.Generator, first: int, count: int) -> Records:
        found = empty(count)
        number = np.arange(first, first + count, dtype=np.uint64)
        found["flow"] = chance.integers(0, 1 << 63, count, dtype=np.uint64)
        found["start_ns"] = (
            START_NS + number * np.uint64(_SECOND // self.rate) + chance.integers(0, 1000, count).astype("u8")
        )
        found["end_ns"] = found["start_ns"] + (chance.lognormal(1.0, 1.5, count) * _SECOND).astype(np.uint64)
        found["start_mark"], found["end_mark"] = StartMark.KERNEL, EndMark.KERNEL
        found["family"], found["protocol"] = 4, np.where(chance.random(count) < 0.7, 6, 17)
        client = chance.integers(0, self.clients, count, dtype=np.uint64)
        found["client"][:, 1] = np.uint64(int(IPv4Address("10.0.0.2"))) + client
        found["client_port"] = chance.integers(32768, 61000, count)
        found["wire"][:, 1] = np.uint64(self.first_address) + client % np.uint64(self.addresses)
        found["wire_port"] = chance.integers(1024, 65536, count)
        server = np.minimum(chance.zipf(1.2, count), self.servers).astype(np.uint64)
        found["remote"][:, 1] = np.uint64(int(IPv4Address("203.0.113.0"))) + server
        found["remote_port"] = np.where(server % np.uint64(10) == 0, 80, 443)
        found["packets"] = chance.geometric(0.05, (count, 2))
        found["bytes"] = found["packets"] * chance.integers(60, 1400, (count, 2)).astype(np.uint64)
        found["traits"], found["slice"] = Trait.COUNTED, 1 + client % np.uint64(self.addresses)
        found["id"] = chance.integers(0, 1 << 32, count)
        return found
