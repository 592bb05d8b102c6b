"""Pools: the ports of shared addresses, cut into blocks of one size that hosts hold for a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nat_rewriter.model.slices import Address, PortRange, Protocol, Slice


@dataclass(frozen=True, slots=True, order=True)
class Block:
    """``size`` ports of an address from an aligned one on: what a host can hold."""

    address: Address
    first: int
    size: int

    @property
    def ports(self) -> PortRange:
        """The ports of the block."""
        return PortRange(self.first, self.first + self.size - 1)

    def __str__(self) -> str:
        shown = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{shown}:{self.ports}"


@dataclass(frozen=True, slots=True)
class Pool:
    """What hosts share: addresses, their ports in blocks, and how long a host may hold one without a word.

    ``ports`` begin and end at a multiple of ``slice_size``, which is a power of two. For ``ttl_s`` after its last
    renewal a host may use what it holds; what it has given back or lost rests for ``hold_down_s`` (RFC 6888, REQ-8).
    """

    name: str
    addresses: tuple[Address, ...]
    ports: PortRange
    slice_size: int
    protocols: tuple[Protocol, ...] = (Protocol.TCP, Protocol.UDP)
    per_host: int = 4
    ttl_s: int = 30
    hold_down_s: int = 120

    def blocks(self) -> Iterator[Block]:
        """Yield every block, by address and port."""
        for address in self.addresses:
            yield from self.blocks_of(address)

    def blocks_of(self, address: Address) -> Iterator[Block]:
        """Yield the blocks of one address."""
        for first in range(self.ports.first, self.ports.last, self.slice_size):
            yield Block(address, first, self.slice_size)

    @property
    def blocks_per_address(self) -> int:
        """How many blocks each address has."""
        return len(range(self.ports.first, self.ports.last, self.slice_size))

    @property
    def block_count(self) -> int:
        """How many blocks there are."""
        return len(self.addresses) * self.blocks_per_address

    def block_at(self, number: int) -> Block:
        """Return a block by its place in ``blocks``."""
        address, place = divmod(number, self.blocks_per_address)
        return Block(self.addresses[address], self.ports.first + place * self.slice_size, self.slice_size)

    def strangers(self, blocks: Iterable[Block]) -> list[Block]:
        """Return those that are none of this pool's."""
        addresses = frozenset(self.addresses)  # of which there may be thousands
        return [block for block in blocks if not (block.address in addresses and self._cuts(block))]

    def covers(self, other: Pool) -> bool:
        """Tell whether every block of another is one of this pool's."""
        ports = self.ports.first <= other.ports.first and other.ports.last <= self.ports.last
        return ports and self.slice_size == other.slice_size and set(other.addresses) <= set(self.addresses)

    def gave(self, owned: Slice) -> bool:
        """Tell whether a slice is one that a host has by holding a block of this pool."""
        (ports, *others) = owned.ranges
        return not others and len(ports) == self.slice_size and Block(owned.address, ports.first, len(ports)) in self

    def __contains__(self, block: object) -> bool:
        return isinstance(block, Block) and block.address in self.addresses and self._cuts(block)

    def _cuts(self, block: Block) -> bool:
        aligned = block.size == self.slice_size and block.first % self.slice_size == 0
        return aligned and self.ports.first <= block.first <= self.ports.last

    def slice_of(self, block: Block) -> Slice:
        """Return the slice that a host has by holding a block; its name tells pool, address and first port."""
        address = str(block.address).replace(":", "_")
        return Slice(f"{self.name}.{address}.{block.first}", block.address, (block.ports,), self.protocols)


@dataclass(frozen=True, slots=True)
class Demand:
    """How `natctl agent` follows the use of a pool's slices on this host.

    ``least``: slices to have, whatever their use. The marks are shares of a slice's ports that are used to its busiest
    destination: with each slice above the high one a further slice is taken; with each below the low one the least used
    is given back, its flows having ``drain_s`` to end.
    """

    least: int = 1
    high_water: float = 0.8
    low_water: float = 0.3
    drain_s: int = 60


@dataclass(frozen=True, slots=True)
class Holding:
    """A block that somebody has, or had a moment ago: it rests, and nobody uses it. ``left_s`` is until that ends.

    ``quarantine_s``: for so long its holder does not use it yet, because the last one has not given it back and may.
    """

    block: Block
    host: str
    since: datetime
    left_s: float
    resting: bool = False
    quarantine_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of a pool's history: who got or gave a block, and when. ``to`` is the other host of a transfer."""

    time: datetime
    what: str
    block: Block
    host: str
    to: str | None = None


@dataclass(frozen=True, slots=True)
class Deed:
    """One thing that `natctl agent` did, or that befell it.

    ``what``: acquired, lost, draining, released, applied, refused, failed, store-silent or store-back; quarantined, of
    what is held and not used yet, and later usable; of a move to another host closed, and then moved or kept;
    taken-over from another host; inbound, where the hosts that packets are handed over to have changed.
    """

    time: datetime
    what: str
    pool: str = ""
    block: Block | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Where pools are kept: ``kind`` sqlite with a path, or etcd with its endpoints."""

    kind: str
    path: str = ""
    endpoints: tuple[tuple[str, int], ...] = ()
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    user: str | None = None
    password_file: str | None = None
    prefix: str = "natctl"
    timeout_s: int = 3

    def __str__(self) -> str:
        if self.kind == "sqlite":
            return f"sqlite:{self.path}"
        return "etcd:" + ",".join(f"{host}:{port}" for host, port in self.endpoints)


DEFAULT_STORE = StoreAddress("sqlite", "/var/lib/natctl/pools.sqlite")


def pool_object(pool: Pool) -> dict[str, Any]:
    """Return the definition of a pool as a JSON object; ``pool_from`` reads it."""
    return {
        "name": pool.name,
        "addresses": [str(address) for address in pool.addresses],
        "ports": str(pool.ports),
        "slice_size": pool.slice_size,
        "protocols": [protocol.value for protocol in pool.protocols],
        "per_host": pool.per_host,
        "ttl_s": pool.ttl_s,
        "hold_down_s": pool.hold_down_s,
    }
