"""What a store of pools does, whatever keeps it."""

from __future__ import annotations

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from ipaddress import ip_address
from types import TracebackType
from typing import Self

from nat_rewriter.errors import NatctlError, StateError
from nat_rewriter.model.moves import Move
from nat_rewriter.model.pools import Block, Change, Holding, Pool, pool_object
from nat_rewriter.model.slices import PortRange, Protocol
from nat_rewriter.pool.hosts import Hosts
from nat_rewriter.pool.moves import Moves

READ, CHANGE = "read pools", "change pools"
MOST_AT_ONCE = 32  # blocks that one call acquires or releases: a transaction of etcd has 128 operations at most
_LOOKED_AT = 60  # blocks, at most, by one read: two operations each


class PoolStore(ABC):
    """Who holds which block of which pool. Every change is whole or not at all, whoever else is at it.

    Every method raises StateError where the store cannot be asked, and NatctlError where a pool is not in it.
    ``moves``: what is on its way from one host to another. ``hosts``: where they are, and a watch of who holds what.
    """

    moves: Moves
    hosts: Hosts

    @abstractmethod
    def close(self) -> None:
        """Let go of the store."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def known_faults(self) -> list[str]:
        """Return what is known to be wrong with the programs that keep the store, a sentence each."""

    @abstractmethod
    def define(self, pool: Pool) -> bool:
        """Enter a pool, or its new terms; tell whether that changed anything. Raises what ``new_terms`` does."""

    @abstractmethod
    def pools(self) -> list[Pool]:
        """Return the pools, by name."""

    @abstractmethod
    def holdings(self, name: str) -> list[Holding]:
        """Return what is held or rests, by address and port."""

    @abstractmethod
    def acquire(self, name: str, host: str, count: int) -> list[Holding]:
        """Give a host so many more blocks, all or none, and renew what it has. Raises NatctlError where it cannot."""

    @abstractmethod
    def renew(self, name: str, host: str) -> list[Holding]:
        """Return what a host holds, for a full term from the moment of this call on."""

    @abstractmethod
    def release(self, name: str, host: str, blocks: Iterable[Block]) -> None:
        """Take blocks back from a host, all or none; they rest. Raises NatctlError for one that it does not hold."""

    @abstractmethod
    def transfer(self, name: str, block: Block, giver: str, taker: str, move: Move | None = None) -> Holding:
        """Move a block from one host to another, for a full term of its own. Raises NatctlError as ``release`` does.

        With a ``move`` that comes to this stage by it: only while that is at the version that was seen.
        """

    @abstractmethod
    def history(self, name: str, block: Block | None = None, most: int = 1000) -> list[Change]:
        """Return what was told of a pool, or of one block, the newest last."""


def new_terms(known: Pool, wanted: Pool, held: Iterable[Block]) -> Pool:
    """Return the terms that a pool in use gets. Raises NatctlError where a block that is held would be none of it."""
    if lost := wanted.strangers(held):
        reason = f"{lost[0]} is held or rests, and would be no slice of it any more; release it first"
        raise NatctlError(
            "define pool", f"{reason}, and {len(lost) - 1} others" if len(lost) > 1 else reason, known.name
        )
    return replace(wanted, name=known.name)


def refuse_too_many(pool: Pool, host: str, held: int, count: int) -> None:
    """Raise NatctlError where a host would hold more than the pool gives to one, or asks for too many at once."""
    refuse_long(count, "acquire", pool.name)
    if held + count > pool.per_host:
        reason = f"{host} holds {held} of at most {pool.per_host} slices (per_host), and cannot have {count} more"
        raise NatctlError("acquire", reason, pool.name)


def refuse_long(count: int, operation: str, name: str) -> None:
    """Raise NatctlError for more blocks than one call takes."""
    if not 1 <= count <= MOST_AT_ONCE:
        raise NatctlError(operation, f"1 to {MOST_AT_ONCE} slices at once, not {count}", name)


def refuse_same_host(giver: str, taker: str) -> None:
    """Raise NatctlError where a block would go to the host that it is of."""
    if giver == taker:
        raise NatctlError("transfer", "giver and taker are the same host", giver)


def random_blocks(pool: Pool, count: int) -> list[Block]:
    """Return blocks to look at when so many free ones are wanted.

    Neighbours would make a host easy to guess, and two hosts that ask at once ask for the same (RFC 6056).
    """
    wanted = min(2 * count, _LOOKED_AT, pool.block_count)
    return [pool.block_at(number) for number in random.sample(range(pool.block_count), wanted)]


def exhausted(pool: Pool, free: int, looked_at: int, count: int) -> NatctlError:
    """Return the error of a pool that has not enough free blocks."""
    reason = f"{free} of {looked_at} slices are free, {count} were asked for; the others are held, or rest after use"
    return NatctlError("acquire", reason, pool.name)


def not_held(operation: str, host: str, blocks: Sequence[Block]) -> NatctlError:
    """Return the error of blocks that a host does not hold."""
    return NatctlError(operation, f"{host} does not hold it", ", ".join(map(str, blocks)))


def in_quarantine(operation: str, host: str, block: Block) -> NatctlError:
    """Return the error of a block that a host holds and does not use yet."""
    return NatctlError(operation, f"{host} does not use it yet: its last holder has not given it back", block)


def unknown_pool(name: str, known: Iterable[str]) -> NatctlError:
    """Return the error of a pool that the store does not have."""
    there = ", ".join(sorted(known)) or "none: natctl pool init enters those of the configuration"
    return NatctlError(READ, f"there is no such pool in the store; there: {there}", name)


def pool_text(pool: Pool) -> str:
    """Return the definition of a pool as it is stored."""
    return json.dumps(pool_object(pool), sort_keys=True)


@lru_cache(maxsize=64)  # a pool may have thousands of addresses, and SQLite's store reads it with every change
def pool_from(text: str | bytes) -> Pool:
    """Return the pool of a stored definition. Raises StateError for what natctl did not write."""
    try:
        told = json.loads(text)
        first, _, last = told["ports"].partition("-")
        return Pool(
            told["name"], tuple(map(ip_address, told["addresses"])), PortRange(int(first), int(last or first)),
            told["slice_size"], tuple(Protocol(each) for each in told["protocols"]), told["per_host"], told["ttl_s"],
            told["hold_down_s"],
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(READ, "a definition that is not natctl's", str(text)[:80]) from error
