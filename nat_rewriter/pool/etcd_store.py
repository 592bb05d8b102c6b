"""Pools in etcd: for a fleet. Terms are etcd's own leases, so that no host's clock takes part.

::

    pool/POOL                    definition
    host/POOL/HOST               its two leases and what it holds; on the short lease, ttl_s
    taken/POOL/ADDRESS/PORT      who has or had a block; on the long lease, ttl_s + hold_down_s: as long as this key is
                                 there nobody else gets the block, so that one whose host dies rests of its own accord
    log/POOL/ADDRESS/PORT        what became of a block, the last few times

A change is one transaction that compares the records of the hosts with those it was thought out on. Free blocks are
found by looking at some by chance: what a change costs is the same in a pool of ten and of a million.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from nat_rewriter.errors import StateError
from nat_rewriter.model.moves import Move
from nat_rewriter.model.pools import Block, Change, Holding, Pool, StoreAddress
from nat_rewriter.pool import etcd_requests as etcd
from nat_rewriter.pool.etcd_client import EtcdClient
from nat_rewriter.pool.etcd_hosts import EtcdHosts
from nat_rewriter.pool.etcd_moves import EtcdMoves
from nat_rewriter.pool.etcd_records import (
    Record,
    Seen,
    View,
    block_of,
    changes_of,
    holding_of,
    nothing,
    record_of,
    seen_of,
    terms,
)
from nat_rewriter.pool.etcd_requests import Request
from nat_rewriter.pool.store import (
    CHANGE,
    MOST_AT_ONCE,
    PoolStore,
    exhausted,
    new_terms,
    not_held,
    pool_from,
    pool_text,
    random_blocks,
    refuse_long,
    refuse_same_host,
    refuse_too_many,
    unknown_pool,
)

_LOOKS = 3  # at blocks here and there, before whole addresses are swept over
_SWEPT = 8192  # blocks that one read sweeps over, address by address
_SWEEPS = 4
_TRIES = 40
_PAUSE_S = 0.02
_MOMENT = 20  # this part of a term
_REST_SHARED = 20  # one lease is for all that a host gives back within this part of the hold-down
_MOST_RANGES = 100  # of a read
T = TypeVar("T")


class EtcdStore(PoolStore):
    """Keeps pools in etcd, under a prefix of its own."""

    moves: EtcdMoves

    def __init__(self, address: StoreAddress) -> None:
        self._client = EtcdClient(address)
        self._prefix = address.prefix
        self.moves = EtcdMoves(self._client, self._prefix)
        self.hosts = EtcdHosts(self._client, self._prefix)
        self._definitions: dict[str, tuple[Pool, int]] = {}
        self._rests: dict[int, tuple[int, float]] = {}
        self._kept: dict[int, tuple[float, int]] = {}  # when a short lease began anew, and its seconds

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def define(self, pool: Pool) -> bool:
        """Enter a pool, or its new terms; tell whether that changed anything."""
        path = self._path("pool", pool.name)

        def attempt() -> bool | None:
            (found,) = self._client.read([etcd.key(path)]).found
            if not found:
                return self._client.change([etcd.at_revision(path, 0)], [etcd.put(path, pool_text(pool))]) or None
            before = pool_from(found[0].value)
            parts = [etcd.under(prefix) for prefix in self._given_up(before, pool)]
            revision, taken, _ = self._client.read_all([part | {"keys_only": True} for part in parts])
            wanted = new_terms(before, pool, [block_of(each, before) for some in taken for each in some])
            if wanted == before:
                return False
            compare = [etcd.at_revision(path, found[0].revision)]
            compare += [etcd.untouched_since(part, revision) for part in parts]
            return self._client.change(compare, [etcd.put(path, pool_text(wanted))]) or None

        return _until_done(attempt)

    def pools(self) -> list[Pool]:
        """Return the pools, by name."""
        (found,) = self._client.read([etcd.under(self._path("pool", ""))]).found
        return [pool_from(each.value) for each in found]

    def holdings(self, name: str) -> list[Holding]:
        """Return what is held or rests, by address and port."""
        pool = self._look(name).pool
        ranges = [etcd.under(self._path(kind, name, "")) for kind in ("taken", "host")]
        taken, hosts = self._client.read_all(ranges).found
        users = {block: record for each in hosts for record in [record_of(each, pool)] for block in record.blocks}
        rests = {each.lease for each in taken if block_of(each, pool) not in users}
        left_s = {lease: self._client.left_s(lease) for lease in rests | {user.short for user in users.values()}}
        found = [holding_of(each, block_of(each, pool), users, left_s) for each in taken]
        return sorted(found, key=lambda each: (each.block.address.version, each.block))

    def acquire(self, name: str, host: str, count: int) -> list[Holding]:
        """Give a host so many more blocks, all or none, and renew what it has."""
        asked = set[Block]()  # by an attempt whose answer may have got lost

        def attempt() -> list[Holding] | None:
            view = self._look(name, [host], lambda pool: random_blocks(pool, count))
            (record,) = view.records
            if asked and asked <= record.blocks.keys():
                return terms(self._with_leases(record, view.pool))
            refuse_too_many(view.pool, host, len(record.blocks), count)
            chosen = self._choose(view, count)
            asked.clear()
            asked.update(chosen)
            after = self._with_leases(record, view.pool).with_more(chosen)
            compare = [etcd.at_revision(self._path("pool", name), view.revision), self._unchanged(record, view.pool)]
            changes = [self._written(after, view.pool)]
            for block, seen in chosen.items():
                compare += self._still(block, seen, view.pool)
                changes += [self._given(block, after, view.pool), self._told(block, seen, "acquired", host, view.pool)]
            return terms(after) if self._client.change(compare, changes) else None

        return _until_done(attempt)

    def renew(self, name: str, host: str) -> list[Holding]:
        """Return what a host holds, for a full term from the moment of this call on.

        Looked at first, and kept alive then: a member that has answered for a majority knows who leads it. A leader of
        before, that stood still and woke, would say of leases that it has kept them alive when others count them (etcd
        issue 15247).
        """
        ended = None
        while True:
            (record,) = self._look(name, [host]).records
            if record.short == ended:
                return []
            if kept := self._kept_alive(record):
                return terms(record._replace(term_s=kept))
            ended = record.short  # unless it has got leases of its own meanwhile

    def release(self, name: str, host: str, blocks: Iterable[Block]) -> None:
        """Take blocks back from a host; they rest."""
        wanted = list(blocks)
        refuse_long(len(wanted), "release", name)
        asked = set[Block]()

        def attempt() -> bool | None:
            pool, _, (record,), seen = self._look(name, [host], lambda _: wanted)
            others = [block for block in wanted if block not in record.blocks]
            if asked and len(others) == len(wanted):
                return True  # the answer to an earlier attempt got lost
            if others:
                raise not_held("release", host, others)
            asked.update(wanted)
            rest = self._rest(pool)
            changes = [self._written(record.without(wanted), pool)]
            for block in wanted:
                changes += [self._given_back(block, host, pool, rest)]
                changes += [self._told(block, seen[block], "released", host, pool)]
            return self._client.change([self._unchanged(record, pool)], changes) or None

        _until_done(attempt)

    def transfer(self, name: str, block: Block, giver: str, taker: str, move: Move | None = None) -> Holding:
        """Move a block from one host to another, for a full term of its own."""
        refuse_same_host(giver, taker)

        def attempt() -> Holding | None:
            pool, _, (from_record, to_record), seen = self._look(name, [giver, taker], lambda _: [block])
            if block not in from_record.blocks:
                raise not_held("transfer", giver, [block])
            refuse_too_many(pool, taker, len(to_record.blocks), 1)
            after = self._with_leases(to_record, pool).with_more([block])
            compare = [self._unchanged(from_record, pool), self._unchanged(to_record, pool)]
            changes = [self._written(from_record.without([block]), pool), self._written(after, pool)]
            changes += [self._given(block, after, pool)]
            changes += [self._told(block, seen[block], "transferred", giver, pool, taker)]
            if move:
                self.moves.refuse_overtaken(move)
                compare, changes = [*compare, self.moves.standing(move)], [*changes, self.moves.brought_on(move)]
            return terms(after)[-1] if self._client.change(compare, changes) else None

        return _until_done(attempt)

    def history(self, name: str, block: Block | None = None, most: int = 1000) -> list[Change]:
        """Return what was told of a pool, or of one block, the newest last."""
        pool = self._look(name).pool
        where = etcd.key(self._block_path("log", pool, block)) if block else etcd.under(self._path("log", name, ""))
        (found,) = self._client.read_all([where]).found
        changes = [change for each in found for change in changes_of(each, pool)]
        return (changes if block else sorted(changes, key=lambda change: change.time))[-most:]

    # keys

    def _path(self, *parts: str) -> str:
        return "/".join((self._prefix, *parts))

    def _block_path(self, kind: str, pool: Pool, block: Block) -> str:
        return self._path(kind, pool.name, str(block.address), f"{block.first:05d}")

    def _given_up(self, before: Pool, wanted: Pool) -> list[str]:
        """Return what the keys of blocks begin with that new terms might take away."""
        if wanted.slice_size == before.slice_size and wanted.ports == before.ports:
            gone = set(before.addresses) - set(wanted.addresses)
            if len(gone) <= _MOST_RANGES:
                return [self._path("taken", before.name, str(address), "") for address in gone]
        return [self._path("taken", before.name, "")]

    # reading

    def _look(
        self, name: str, hosts: Sequence[str] = (), blocks: Callable[[Pool], Sequence[Block]] | None = None
    ) -> View:
        """Return the definition, the records of hosts, and what is known of blocks, by one read where it can be."""
        while True:
            pool, revision = self._definitions.get(name) or self._definition(name)
            wanted = blocks(pool) if blocks else ()
            ranges = [etcd.changed_key(self._path("pool", name), revision)]
            ranges += [etcd.key(self._path("host", name, host)) for host in hosts]
            ranges += [etcd.key(self._block_path(kind, pool, block)) for block in wanted for kind in ("taken", "log")]
            _, found, counts = self._client.read(ranges)
            if counts[0] and not found[0]:
                break
            del self._definitions[name]
        records = [
            record_of(each[0], pool) if each else nothing(host)
            for host, each in zip(hosts, found[1 : 1 + len(hosts)], strict=True)
        ]
        of_blocks = found[1 + len(hosts) :]
        seen = map(seen_of, of_blocks[::2], of_blocks[1::2])
        return View(pool, revision, records, dict(zip(wanted, seen, strict=True)))

    def _definition(self, name: str) -> tuple[Pool, int]:
        known = self._client.read([etcd.under(self._path("pool", ""))]).found[0]
        self._definitions = {pool.name: (pool, each.revision) for each in known for pool in [pool_from(each.value)]}
        if name not in self._definitions:
            raise unknown_pool(name, self._definitions)
        return self._definitions[name]

    def _choose(self, view: View, count: int) -> dict[Block, Seen]:
        """Return free blocks, by chance: hosts that ask at once seldom want the same."""
        free = view.free
        for _ in range(_LOOKS):
            if len(free) < count:
                free |= self._look(view.pool.name, [], lambda pool: random_blocks(pool, MOST_AT_ONCE)).free
        if len(free) < count:
            swept = self._sweep(view.pool, count)
            return self._look(view.pool.name, [], lambda _: swept).seen
        return dict(random.sample(list(free.items()), count))

    def _sweep(self, pool: Pool, count: int) -> list[Block]:
        """Return free blocks of a pool that is nearly full: sweeps over addresses, over all where they are few."""
        at_once = min(_MOST_RANGES, max(1, _SWEPT // pool.blocks_per_address))
        addresses = random.sample(pool.addresses, min(len(pool.addresses), at_once * _SWEEPS))
        free = list[Block]()
        for start in range(0, len(addresses), at_once):
            some = addresses[start : start + at_once]
            ranges = [etcd.keys_under(self._path("taken", pool.name, str(address), "")) for address in some]
            taken = {block_of(each, pool) for keys in self._client.read(ranges).found for each in keys}
            free += [block for address in some for block in pool.blocks_of(address) if block not in taken]
            if len(free) >= count:
                return random.sample(free, count)
        raise exhausted(pool, len(free), len(addresses) * pool.blocks_per_address, count)

    # leases

    def _with_leases(self, record: Record, pool: Pool) -> Record:
        """Return the record with leases that are fresh; new ones where it has none any more."""
        if term_s := self._fresh_s(record) or self._kept_alive(record):
            return record._replace(term_s=term_s)
        asked = _now()
        long, short = self._client.grant(pool.ttl_s + pool.hold_down_s), self._client.grant(pool.ttl_s)
        self._kept[short] = (asked, pool.ttl_s)
        return nothing(record.host)._replace(short=short, long=long, term_s=pool.ttl_s)

    def _fresh_s(self, record: Record) -> float:
        """Return what is left of leases that this store has renewed a moment ago, 0 where that was earlier."""
        began, seconds = self._kept.get(record.short if record.revision else 0, (0.0, 0))
        since_s = _now() - began
        return seconds - since_s if since_s * _MOMENT < seconds else 0.0

    def _kept_alive(self, record: Record) -> int:
        """Renew both leases; return the seconds of the short one, 0 where they have ended.

        The long one first: it must not end before the short one and the hold-down after that. The seconds are those it
        was granted for, which other terms of the pool do not change.
        """
        asked = _now()
        if not (record.revision and self._client.keep_alive(record.long)):
            return 0
        term_s = self._client.keep_alive(record.short)
        self._kept[record.short] = (asked, term_s)
        return term_s

    def _rest(self, pool: Pool) -> int:
        """Return the lease of what is given back now, 0 where nothing rests. One is for several, to spare etcd."""
        if not pool.hold_down_s:
            return 0
        lease, until = self._rests.get(pool.hold_down_s, (0, 0.0))
        now = _now()
        if now >= until:
            shared_s = pool.hold_down_s // _REST_SHARED
            lease = self._client.grant(pool.hold_down_s + shared_s)
            self._rests[pool.hold_down_s] = (lease, now + shared_s)
        return lease

    # comparisons and changes

    def _unchanged(self, record: Record, pool: Pool) -> Request:
        return etcd.at_revision(self._path("host", pool.name, record.host), record.revision)

    def _still(self, block: Block, seen: Seen, pool: Pool) -> Iterator[Request]:
        yield etcd.at_revision(self._block_path("taken", pool, block), 0)
        yield etcd.at_revision(self._block_path("log", pool, block), seen.told_revision)

    def _written(self, record: Record, pool: Pool) -> Request:
        return etcd.put(self._path("host", pool.name, record.host), record.text, record.short)

    def _given(self, block: Block, record: Record, pool: Pool) -> Request:
        told = json.dumps({"host": record.host, "since": record.blocks[block]})
        return etcd.put(self._block_path("taken", pool, block), told, record.long)

    def _given_back(self, block: Block, host: str, pool: Pool, rest: int) -> Request:
        taken = self._block_path("taken", pool, block)
        return etcd.put(taken, json.dumps({"host": host, "since": time.time()}), rest) if rest else etcd.delete(taken)

    def _told(self, block: Block, seen: Seen, what: str, host: str, pool: Pool, other: str | None = None) -> Request:
        return etcd.put(self._block_path("log", pool, block), seen.text(what, host, other))


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _until_done(attempt: Callable[[], T | None]) -> T:
    """Return the first answer. None means that another host changed what the attempt was thought out on."""
    for number in range(_TRIES):
        if (answer := attempt()) is not None:
            return answer
        time.sleep(random.uniform(0, _PAUSE_S * min(number + 1, 10)))
    raise StateError(CHANGE, f"others changed the pool at the same time, {_TRIES} times over: try again")
