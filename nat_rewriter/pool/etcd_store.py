"""Pools in etcd: for a fleet. Terms are etcd's own leases, so that no host's clock takes part.

::

    pool/POOL                    definition
    host/POOL/HOST               its two leases and its blocks; on the short lease
    held/POOL/ADDRESS/PORT       who uses it; on the short lease, ttl_s
    taken/POOL/ADDRESS/PORT      who has or had it; on the long lease, ttl_s + hold_down_s: as long as this key is there
                                 nobody else gets the block, so that one whose host dies rests of its own accord
    log/POOL/ADDRESS/PORT/TIME   history, for thirty days

A change is one transaction that compares the records of the hosts with those it was thought out on.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from ipaddress import ip_address
from types import TracebackType
from typing import NamedTuple, TypeVar

from nat_rewriter.errors import StateError
from nat_rewriter.model.pools import Block, Change, Holding, Pool, StoreAddress
from nat_rewriter.pool import etcd_client as etcd
from nat_rewriter.pool.etcd_client import EtcdClient, Found, Request
from nat_rewriter.pool.store import (
    CHANGE,
    exhausted,
    new_terms,
    not_held,
    pool_from,
    pool_text,
    refuse_long,
    refuse_same_host,
    refuse_too_many,
    unknown_pool,
)

_DAY_S = 86400
_HISTORY_S = 30 * _DAY_S
_TRIES = 40
_PAUSE_S = 0.02
T = TypeVar("T")


class Record(NamedTuple):
    """What a host has of a pool; ``revision`` is 0 where etcd knows nothing of it."""

    host: str
    revision: int = 0
    short: int = 0
    long: int = 0
    blocks: tuple[Block, ...] = ()


class EtcdStore:
    """Keeps pools in etcd, under a prefix of its own."""

    def __init__(self, address: StoreAddress) -> None:
        self._client = EtcdClient(address)
        self._prefix = address.prefix
        self._history_lease, self._history_lease_due = 0, 0.0

    def __enter__(self) -> EtcdStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def define(self, pool: Pool) -> bool:
        """Enter a pool, or its new terms; tell whether that changed anything."""
        path, taken = self._path("pool", pool.name), self._path("taken", pool.name, "")

        def attempt() -> bool | None:
            revision, (known, there) = self._client.read([etcd.key(path), etcd.under(taken)])
            before = pool_from(known[0].value) if known else None
            wanted = new_terms(before, pool, [_block(each, before) for each in there]) if before else pool
            if wanted == before:
                return False
            compare = [etcd.at_revision(path, known[0].revision if known else 0), etcd.untouched_since(taken, revision)]
            return self._client.change(compare, [etcd.put(path, pool_text(wanted))]) or None

        return _until_done(attempt)

    def pools(self) -> list[Pool]:
        """Return the pools, by name."""
        (found,) = self._client.read([etcd.under(self._path("pool", ""))]).found
        return [pool_from(each.value) for each in found]

    def holdings(self, name: str) -> list[Holding]:
        """Return what is held or rests, by address and port."""
        pool, _ = self._pool(name)
        ranges = [etcd.under(self._path(kind, name, "")) for kind in ("taken", "held")]
        taken, held = self._client.read(ranges).found
        users = {_block(each, pool): each for each in held}
        left_s = {lease: self._client.left_s(lease) for lease in {each.lease for each in (*taken, *held)}}
        found = [self._holding(each, users.get(_block(each, pool)), pool, left_s) for each in taken]
        return sorted(found, key=lambda each: (each.block.address.version, each.block))

    def acquire(self, name: str, host: str, count: int) -> list[Holding]:
        """Give a host so many more blocks, all or none, and renew what it has."""

        def attempt() -> list[Holding] | None:
            pool, pool_revision = self._pool(name)
            record = self._with_leases(self._record(pool, host), pool)
            refuse_too_many(pool, host, len(record.blocks), count)
            blocks = self._choose(pool, count)
            after = record._replace(blocks=(*record.blocks, *blocks))
            compare = [etcd.at_revision(self._path("pool", name), pool_revision), self._unchanged(record, pool)]
            compare += [etcd.at_revision(self._block_path("taken", pool, block), 0) for block in blocks]
            changes = [self._written(after, pool)]
            for block in blocks:
                changes += [*self._given(block, after, pool), self._told("acquired", block, host, pool)]
            return self._terms(after, pool) if self._client.change(compare, changes) else None

        return _until_done(attempt)

    def renew(self, name: str, host: str) -> list[Holding]:
        """Return what a host holds, for a full term from the moment of this call on."""
        pool, _ = self._pool(name)
        if not self._kept_alive(self._record(pool, host)):
            return []
        return self._terms(self._record(pool, host), pool)

    def release(self, name: str, host: str, blocks: Iterable[Block]) -> None:
        """Take blocks back from a host; they rest."""
        wanted = list(blocks)
        refuse_long(len(wanted), "release", name)

        def attempt() -> bool | None:
            pool, _ = self._pool(name)
            record = self._record(pool, host)
            if others := [block for block in wanted if block not in record.blocks]:
                raise not_held("release", host, others)
            after = record._replace(blocks=tuple(each for each in record.blocks if each not in wanted))
            rest = self._client.grant(pool.hold_down_s) if pool.hold_down_s else 0
            changes = [self._written(after, pool)]
            for block in wanted:
                changes += [*self._given_back(block, host, pool, rest), self._told("released", block, host, pool)]
            return self._client.change([self._unchanged(record, pool)], changes) or None

        _until_done(attempt)

    def transfer(self, name: str, block: Block, giver: str, taker: str) -> Holding:
        """Move a block from one host to another, for a full term of its own."""

        def attempt() -> Holding | None:
            refuse_same_host(giver, taker)
            pool, _ = self._pool(name)
            from_record = self._record(pool, giver)
            if block not in from_record.blocks:
                raise not_held("transfer", giver, [block])
            to_record = self._with_leases(self._record(pool, taker), pool)
            refuse_too_many(pool, taker, len(to_record.blocks), 1)
            before = from_record._replace(blocks=tuple(each for each in from_record.blocks if each != block))
            after = to_record._replace(blocks=(*to_record.blocks, block))
            compare = [self._unchanged(from_record, pool), self._unchanged(to_record, pool)]
            changes = [self._written(before, pool), self._written(after, pool), *self._given(block, after, pool)]
            changes.append(self._told("transferred", block, giver, pool, taker))
            return self._terms(after, pool)[-1] if self._client.change(compare, changes) else None

        return _until_done(attempt)

    def history(self, name: str, block: Block | None = None, most: int = 1000) -> list[Change]:
        """Return what was told of a pool, or of one block, the newest last."""
        pool, _ = self._pool(name)
        prefix = f"{self._block_path('log', pool, block)}/" if block else self._path("log", name, "")
        (found,) = self._client.read([etcd.newest(prefix, most)]).found
        return [_change(each, pool) for each in reversed(found)]

    # keys

    def _path(self, *parts: str) -> str:
        return "/".join((self._prefix, *parts))

    def _block_path(self, kind: str, pool: Pool, block: Block) -> str:
        return self._path(kind, pool.name, str(block.address), f"{block.first:05d}")

    # reading

    def _pool(self, name: str) -> tuple[Pool, int]:
        ranges = [etcd.key(self._path("pool", name)), etcd.under(self._path("pool", ""))]
        found, known = self._client.read(ranges).found
        if not found:
            raise unknown_pool(name, [each.key.rpartition("/")[2] for each in known])
        return pool_from(found[0].value), found[0].revision

    def _record(self, pool: Pool, host: str) -> Record:
        (found,) = self._client.read([etcd.key(self._path("host", pool.name, host))]).found
        if not found:
            return Record(host)
        told = json.loads(found[0].value)
        blocks = tuple(Block(ip_address(address), first, pool.slice_size) for address, first in told["blocks"])
        return Record(host, found[0].revision, told["short"], told["long"], blocks)

    def _choose(self, pool: Pool, count: int) -> list[Block]:
        """Return free blocks, by chance: hosts that ask at once seldom want the same."""
        request = etcd.under(self._path("taken", pool.name, "")) | {"keys_only": True}
        (found,) = self._client.read([request]).found
        taken = {_block(each, pool) for each in found}
        free = [block for block in pool.blocks() if block not in taken]
        if len(free) < count:
            resting = len(found) - len(self._client.read([etcd.under(self._path("held", pool.name, ""))]).found[0])
            raise exhausted(pool, len(free), count, resting)
        return random.sample(free, count)

    def _holding(self, taken: Found, held: Found | None, pool: Pool, left_s: dict[int, int]) -> Holding:
        told = json.loads((held or taken).value)
        since = datetime.fromtimestamp(told["since"], UTC)
        return Holding(_block(taken, pool), told["host"], since, left_s[(held or taken).lease], held is None)

    # leases

    def _with_leases(self, record: Record, pool: Pool) -> Record:
        """Return the record with leases that are fresh; new ones where it has none any more."""
        if self._kept_alive(record):
            return record
        long = self._client.grant(pool.ttl_s + pool.hold_down_s)
        return Record(record.host, 0, self._client.grant(pool.ttl_s), long)

    def _kept_alive(self, record: Record) -> bool:
        """Renew both leases. The long one first: it must not end before the short one and the hold-down after that."""
        return bool(record.revision and self._client.keep_alive(record.long) and self._client.keep_alive(record.short))

    def _terms(self, record: Record, pool: Pool) -> list[Holding]:
        now = datetime.now(UTC)
        return [Holding(block, record.host, now, pool.ttl_s) for block in record.blocks]

    # changes

    def _unchanged(self, record: Record, pool: Pool) -> Request:
        return etcd.at_revision(self._path("host", pool.name, record.host), record.revision)

    def _written(self, record: Record, pool: Pool) -> Request:
        blocks = [(str(block.address), block.first) for block in record.blocks]
        told = json.dumps({"short": record.short, "long": record.long, "blocks": blocks})
        return etcd.put(self._path("host", pool.name, record.host), told, record.short)

    def _given(self, block: Block, record: Record, pool: Pool) -> Iterator[Request]:
        told = json.dumps({"host": record.host, "since": time.time()})
        yield etcd.put(self._block_path("taken", pool, block), told, record.long)
        yield etcd.put(self._block_path("held", pool, block), told, record.short)

    def _given_back(self, block: Block, host: str, pool: Pool, rest: int) -> Iterator[Request]:
        taken, told = self._block_path("taken", pool, block), json.dumps({"host": host, "since": time.time()})
        yield etcd.delete(self._block_path("held", pool, block))
        yield etcd.put(taken, told, rest) if rest else etcd.delete(taken)

    def _told(self, what: str, block: Block, host: str, pool: Pool, other: str | None = None) -> Request:
        if time.monotonic() >= self._history_lease_due:
            self._history_lease = self._client.grant(_HISTORY_S)
            self._history_lease_due = time.monotonic() + _DAY_S
        told = json.dumps({"time": time.time(), "what": what, "host": host, "to": other})
        path = f"{self._block_path('log', pool, block)}/{time.time_ns():020d}"
        return etcd.put(path, told, self._history_lease)


def _until_done(attempt: Callable[[], T | None]) -> T:
    """Return the first answer. None means that another host changed what the attempt was thought out on."""
    for number in range(_TRIES):
        if (answer := attempt()) is not None:
            return answer
        time.sleep(random.uniform(0, _PAUSE_S * min(number + 1, 10)))
    raise StateError(CHANGE, f"others changed the pool at the same time, {_TRIES} times over: try again")


def _block(found: Found, pool: Pool | None) -> Block:
    _, address, first = found.key.rsplit("/", 2)
    return Block(ip_address(address), int(first), pool.slice_size if pool else 1)


def _change(found: Found, pool: Pool) -> Change:
    told = json.loads(found.value)
    _, address, first, _ = found.key.rsplit("/", 3)
    block = Block(ip_address(address), int(first), pool.slice_size)
    return Change(datetime.fromtimestamp(told["time"], UTC), told["what"], block, told["host"], told["to"])
