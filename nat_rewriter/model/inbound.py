"""Handing packets for shared addresses over: any host of a fleet may receive one, and its owner gets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from nat_rewriter.model.pools import Block
from nat_rewriter.model.slices import Address


@dataclass(frozen=True, slots=True)
class Inbound:
    """How a host takes part: the device by which it reaches the others, and ``addresses`` at which they reach it there.

    ``arrival`` are the devices on which packets for shared addresses come in.
    """

    device: str
    addresses: tuple[Address, ...]
    arrival: tuple[str, ...]

    @property
    def devices(self) -> tuple[str, ...]:
        """All devices whose packets are looked at."""
        return tuple(dict.fromkeys((*self.arrival, self.device)))


@dataclass(frozen=True, slots=True)
class Peer:
    """A host of the fleet: at most one address of each family, and the link-layer address that its packets have."""

    host: str
    addresses: tuple[Address, ...]
    link: str

    def address(self, family: int) -> Address | None:
        """Return the address of an IP version."""
        return next((each for each in self.addresses if each.version == family), None)


@dataclass(frozen=True, slots=True)
class Holders:
    """What each host holds, and where the hosts are: a store at one moment. Who holds nothing is left out."""

    held: Mapping[str, frozenset[Block]] = field(default_factory=dict)
    peers: Mapping[str, Peer] = field(default_factory=dict)

    @classmethod
    def of(cls, blocks: Mapping[Block, str], peers: Mapping[str, Peer]) -> Self:
        """Return the same, of blocks and the hosts that hold them."""
        held: dict[str, set[Block]] = {}
        for block, host in blocks.items():
            held.setdefault(host, set()).add(block)
        return cls({host: frozenset(some) for host, some in held.items()}, peers)

    def changed_since(self, before: Holders) -> set[str]:
        """Return the hosts that hold something else than before, or are elsewhere."""
        hosts = {*self.held, *before.held, *self.peers, *before.peers}
        return {
            host
            for host in hosts
            if self.peers.get(host) != before.peers.get(host)
            or ((now := self.held.get(host)) is not (then := before.held.get(host)) and now != then)
        }
