"""Pools in etcd: for a fleet. Terms are etcd's own leases, so that no host's clock takes part.

::

    pool/POOL                    definition
    host/POOL/HOST               its two leases and what it holds; on the short lease, ttl_s
    taken/POOL/ADDRESS/PORT      who has or had a block; on the long lease, ttl_s + hold_down_s: as long as this key is
                                 there nobody else gets the block, so that one whose host dies rests of its own accord
    quarantine/POOL/HOST/ADDRESS/PORT  while it is there, the host does not use this block yet; on a lease that nobody
                                 renews, as long as the term of the last holder was
    log/POOL/ADDRESS/PORT        what became of a block, the last few times; on no lease

A change is one transaction that compares the records of the hosts with those it was thought out on. Free blocks are
found by looking at some by chance: what a change costs is the same in a pool of ten and of a million.

Leases may end early: a leader that stood still for longer than a term, and wakes, ends those that its successor has
kept alive (etcd issue 15247). So a block whose ``taken`` is gone may be in use still, for a term of its last holder.
Its ``log`` tells: where that does not end with a release, who gets the block holds it in quarantine first.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from nat_rewriter.errors import StateError
from nat_rewriter.model.moves import Move
from nat_rewriter.model.pools import Block, Change, Holding, Pool, StoreAddress
from nat_rewriter.pool import etcd_requests as etcd
from nat_rewriter.pool.etcd_client import EtcdClient, Found
from nat_rewriter.pool.etcd_faults import ends_leases_early
from nat_rewriter.pool.etcd_hosts import EtcdHosts
from nat_rewriter.pool.etcd_leases import EtcdLeases
from nat_rewriter.pool.etcd_moves import EtcdMoves
from nat_rewriter.pool.etcd_records import (
    RELEASED,
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
    users_of,
)
from nat_rewriter.pool.etcd_requests import Request
from nat_rewriter.pool.store import (
    CHANGE,
    MOST_AT_ONCE,
    PoolStore,
    exhausted,
    in_quarantine,
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

_ENDS_EARLY = (
    "etcd may end the terms of hosts early when a leader that stood still wakes, and flows with them "
    "(etcd issue 15247, mended in 3.4.31 and 3.5.13): {}"
)
_LOOKS = 3  # at blocks here and there, before whole addresses are swept over
_SWEPT = 8192  # blocks that one read sweeps over, address by address
_SWEEPS = 4
_TRIES = 40
_PAUSE_S = 0.02
_MOST_RANGES = 100  # of a read
T = TypeVar("T")


class EtcdStore(PoolStore):
    """Keeps pools in etcd, under a prefix of its own."""

    moves: EtcdMoves

    def __init__(self, address: StoreAddress) -> None:
        self._client = EtcdClient(address)
        self._address, self._prefix = address, address.prefix
        self.moves = EtcdMoves(self._client, self._prefix)
        self.hosts = EtcdHosts(self._client, self._prefix)
        self._leases = EtcdLeases(self._client)
        self._definitions: dict[str, tuple[Pool, int]] = {}

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def known_faults(self) -> list[str]:
        """Return what is wrong with the endpoints' releases of etcd."""
        versions = self._client.versions()
        if not versions:
            raise StateError("ask for versions", "no endpoint of etcd could answer", self._address)
        faulty = [f"{name} is {version}" for name, version in versions.items() if ends_leases_early(version)]
        return [_ENDS_EARLY.format(", ".join(faulty))] if faulty else []

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
        ranges = [etcd.under(self._path(kind, name, "")) for kind in ("taken", "host", "quarantine")]
        taken, hosts, quarantines = self._client.read_all(ranges).found
        of_host = {each.key.rpartition("/")[2]: list[Found]() for each in hosts}
        for each in quarantines:
            of_host.get(each.key.split("/")[-3], []).append(each)
        records = [record_of(each, pool, of_host[each.key.rpartition("/")[2]]) for each in hosts]
        users = users_of(taken, records, pool)
        rests = {each.lease for each in taken if block_of(each, pool) not in users}
        lasting = {lease for user in users.values() for lease in (user.short, *user.quarantines.values())}
        left_s = self._left_s(rests | lasting)
        blocks = {block_of(each, pool): each for each in taken}
        found = [holding_of(each, block, users.get(block), left_s) for block, each in blocks.items()]
        return sorted(found, key=lambda each: (each.block.address.version, each.block))

    def acquire(self, name: str, host: str, count: int) -> list[Holding]:
        """Give a host so many more blocks, all or none, and renew what it has."""
        asked = set[Block]()  # by an attempt whose answer may have got lost

        def attempt() -> list[Holding] | None:
            view = self._look(name, [host], lambda pool: random_blocks(pool, count))
            (record,) = view.records
            if asked and asked <= record.blocks.keys():
                return self._terms(self._leases.renewed(record, view.pool))
            refuse_too_many(view.pool, host, len(record.blocks), count)
            chosen = self._choose(view, count)
            asked.clear()
            asked.update(chosen)
            quarantines = self._quarantines(chosen, view.pool)
            after = self._leases.renewed(record, view.pool).with_more(chosen, quarantines)
            compare = [etcd.at_revision(self._path("pool", name), view.revision), self._unchanged(record, view.pool)]
            changes = [self._written(after, view.pool)]
            for block, seen in chosen.items():
                compare += self._still(block, seen, view.pool)
                changes += self._given(block, seen, "acquired", after, view.pool)
            return self._terms(after) if self._client.change(compare, changes) else None

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
            if kept := self._leases.keep_alive(record):
                return self._terms(record._replace(term_s=kept))
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
            changes = [self._written(record.without(wanted), pool)]
            for block in wanted:
                changes += self._given_back(block, seen[block], record, pool)
            return self._client.change([self._unchanged(record, pool)], changes) or None

        _until_done(attempt)

    def transfer(self, name: str, block: Block, giver: str, taker: str, move: Move | None = None) -> Holding:
        """Move a block from one host to another, for a full term of its own."""
        refuse_same_host(giver, taker)

        def attempt() -> Holding | None:
            pool, _, (from_record, to_record), seen = self._look(name, [giver, taker], lambda _: [block])
            if block not in from_record.blocks:
                raise not_held("transfer", giver, [block])
            if block in from_record.quarantines:
                raise in_quarantine("transfer", giver, block)
            refuse_too_many(pool, taker, len(to_record.blocks), 1)
            after = self._leases.renewed(to_record, pool).with_more([block])
            compare = [self._unchanged(from_record, pool), self._unchanged(to_record, pool)]
            changes = [self._written(from_record.without([block]), pool), self._written(after, pool)]
            changes += self._given(block, seen[block], "transferred", after, pool, giver)
            if move:
                self.moves.refuse_overtaken(move)
                compare, changes = [*compare, self.moves.standing(move)], [*changes, self.moves.brought_on(move)]
            return self._terms(after)[-1] if self._client.change(compare, changes) else None

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

    def _quarantine_path(self, pool: Pool, host: str, block: Block) -> str:
        return self._path("quarantine", pool.name, host, str(block.address), f"{block.first:05d}")

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
            for host in hosts:
                ranges += [etcd.key(self._path("host", name, host))]
                ranges += [etcd.under(self._path("quarantine", name, host, ""))]
            ranges += [etcd.key(self._block_path(kind, pool, block)) for block in wanted for kind in ("taken", "log")]
            _, found, counts = self._client.read(ranges)
            if counts[0] and not found[0]:
                break
            del self._definitions[name]
        of_hosts, of_blocks = found[1 : 1 + 2 * len(hosts)], found[1 + 2 * len(hosts) :]
        records = [
            record_of(record[0], pool, quarantines) if record else nothing(host)
            for host, record, quarantines in zip(hosts, of_hosts[::2], of_hosts[1::2], strict=True)
        ]
        seen = map(seen_of, of_blocks[::2], of_blocks[1::2])
        return View(pool, revision, records, dict(zip(wanted, seen, strict=True)))

    def _definition(self, name: str) -> tuple[Pool, int]:
        known = self._client.read([etcd.under(self._path("pool", ""))]).found[0]
        self._definitions = {pool.name: (pool, each.revision) for each in known for pool in [pool_from(each.value)]}
        if name not in self._definitions:
            raise unknown_pool(name, self._definitions)
        return self._definitions[name]

    def _choose(self, view: View, count: int) -> dict[Block, Seen]:
        """Return free blocks, by chance: who asks at once seldom wants the same. Those that were returned first."""
        free = view.free
        for _ in range(_LOOKS):
            if sum(seen.returned for seen in free.values()) < count:
                free |= self._look(view.pool.name, [], lambda pool: random_blocks(pool, MOST_AT_ONCE)).free
        if len(free) < count:
            swept = self._sweep(view.pool, count)
            return self._look(view.pool.name, [], lambda _: swept).seen
        by_chance = random.sample(list(free.items()), len(free))
        return dict(sorted(by_chance, key=lambda each: not each[1].returned)[:count])

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

    def _terms(self, record: Record) -> list[Holding]:
        return terms(record, self._left_s(set(record.quarantines.values())))

    def _left_s(self, leases: Iterable[int]) -> dict[int, int]:
        return {lease: self._client.left_s(lease) for lease in leases}

    def _quarantines(self, chosen: Mapping[Block, Seen], pool: Pool) -> dict[Block, int]:
        """Return new leases for those blocks of which nobody has said that they are not in use any more.

        They begin after it was seen that the blocks are not kept from others, so after the last renewal of a user.
        """
        used = {block: used_for_s for block, seen in chosen.items() if (used_for_s := seen.used_for_s(pool))}
        return dict.fromkeys(used, self._client.grant(max(used.values()))) if used else {}

    # comparisons and changes

    def _unchanged(self, record: Record, pool: Pool) -> Request:
        return etcd.at_revision(self._path("host", pool.name, record.host), record.revision)

    def _still(self, block: Block, seen: Seen, pool: Pool) -> Iterator[Request]:
        yield etcd.at_revision(self._block_path("taken", pool, block), 0)
        yield etcd.at_revision(self._block_path("log", pool, block), seen.told_revision)

    def _written(self, record: Record, pool: Pool) -> Request:
        return etcd.put(self._path("host", pool.name, record.host), record.text, record.short)

    def _given(
        self, block: Block, seen: Seen, what: str, taker: Record, pool: Pool, giver: str | None = None
    ) -> Iterator[Request]:
        """Yield the changes by which a block becomes that of a renewed record."""
        told = json.dumps({"host": taker.host, "since": taker.blocks[block]})
        yield etcd.put(self._block_path("taken", pool, block), told, taker.long)
        term_s = max(self._leases.granted_s(taker), seen.used_for_s(pool))
        host, other = (giver, taker.host) if giver else (taker.host, None)
        yield etcd.put(self._block_path("log", pool, block), seen.text(what, host, other, term_s))
        if lease := taker.quarantines.get(block):
            yield etcd.put(self._quarantine_path(pool, taker.host, block), "", lease)

    def _given_back(self, block: Block, seen: Seen, giver: Record, pool: Pool) -> Iterator[Request]:
        """Yield the changes by which a block rests, also for as long as somebody before may be using it."""
        rest_s = pool.hold_down_s
        if block in giver.quarantines:
            rest_s = max(rest_s, seen.used_for_s(pool))
            yield etcd.delete(self._quarantine_path(pool, giver.host, block))
        taken, rest = self._block_path("taken", pool, block), self._leases.rest(rest_s)
        told = json.dumps({"host": giver.host, "since": time.time()})
        yield etcd.put(taken, told, rest) if rest else etcd.delete(taken)
        yield etcd.put(self._block_path("log", pool, block), seen.text(RELEASED, giver.host))


def _until_done(attempt: Callable[[], T | None]) -> T:
    """Return the first answer. None means that another host changed what the attempt was thought out on."""
    for number in range(_TRIES):
        if (answer := attempt()) is not None:
            return answer
        time.sleep(random.uniform(0, _PAUSE_S * min(number + 1, 10)))
    raise StateError(CHANGE, f"others changed the pool at the same time, {_TRIES} times over: try again")
