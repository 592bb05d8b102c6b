"""What etcd keeps of a pool as values: the record of a host, what is known of a block."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, NamedTuple

from nat_rewriter.model.pools import Block, Change, Holding, Pool
from nat_rewriter.pool.etcd_client import Found

RELEASED = "released"
_TOLD = 8  # changes of a block that are kept
Told = list[list[Any]]  # time, what, host, other host; unless it was released, the seconds of the term that began


class Record(NamedTuple):
    """What a host holds of a pool, and since when; ``revision`` is 0 where etcd knows nothing of it.

    ``quarantines`` are the leases of the keys by which some of its blocks are not to be used yet.
    """

    host: str
    revision: int
    short: int
    long: int
    blocks: dict[Block, float]
    term_s: float = 0.0  # what is left of the short lease, as etcd told it
    quarantines: Mapping[Block, int] = {}

    def with_more(self, blocks: Iterable[Block], quarantines: Mapping[Block, int] = {}) -> Record:
        """Return the record of a host that has got more, some of which it may not use yet."""
        more = self.blocks | dict.fromkeys(blocks, time.time())
        return self._replace(blocks=more, quarantines={**self.quarantines, **quarantines})

    @property
    def text(self) -> str:
        """The record as etcd keeps it."""
        blocks = [(str(block.address), block.first, round(since)) for block, since in self.blocks.items()]
        return json.dumps({"short": self.short, "long": self.long, "blocks": blocks})

    def without(self, blocks: Iterable[Block]) -> Record:
        """Return the record of a host that has some no more."""
        gone = set(blocks)
        return self._replace(blocks={block: since for block, since in self.blocks.items() if block not in gone})


def nothing(host: str) -> Record:
    """Return the record of a host that etcd knows nothing of."""
    return Record(host, revision=0, short=0, long=0, blocks={})


class Seen(NamedTuple):
    """What is known of a block: whether somebody has or had it, and what became of it."""

    taken: bool
    told: Told
    told_revision: int

    @property
    def returned(self) -> bool:
        """Whether its last holder is known to have given it back, or there was none."""
        return not self.told or self.told[-1][1] == RELEASED

    def used_for_s(self, pool: Pool) -> int:
        """Return for how long, at most, its last holder goes on using a block of which etcd knows nothing any more."""
        if self.returned:
            return 0
        _, _, _, _, *term_s = self.told[-1]
        return int(term_s[0]) if term_s else pool.ttl_s

    def text(self, what: str, host: str, other: str | None = None, term_s: int = 0) -> str:
        """Return what became of the block, with one thing more, as etcd keeps it."""
        term = [term_s] if term_s else []
        return json.dumps([*self.told, [time.time(), what, host, other, *term]][-_TOLD:])


class View(NamedTuple):
    """A part of a pool at one moment."""

    pool: Pool
    revision: int  # of the definition
    records: list[Record]
    seen: dict[Block, Seen]

    @property
    def free(self) -> dict[Block, Seen]:
        """Those that nobody has or had a moment ago."""
        return {block: seen for block, seen in self.seen.items() if not seen.taken}


def record_of(found: Found, pool: Pool, quarantines: Sequence[Found] = ()) -> Record:
    """Return the record of a host by its key and what that holds, and by the keys of its quarantines."""
    told = json.loads(found.value)
    blocks = {Block(ip_address(address), first, pool.slice_size): since for address, first, since in told["blocks"]}
    record = Record(found.key.rpartition("/")[2], found.revision, told["short"], told["long"], blocks)
    if not quarantines:
        return record
    leases = {block_of(each, pool): each.lease for each in quarantines}
    return record._replace(quarantines={block: lease for block, lease in leases.items() if block in blocks})


def seen_of(taken: Sequence[Found], log: Sequence[Found]) -> Seen:
    """Return what is known of a block by its two keys, as far as they are there."""
    return Seen(bool(taken), json.loads(log[0].value) if log else [], log[0].revision if log else 0)


def block_of(found: Found, pool: Pool) -> Block:
    """Return the block whose key this is."""
    _, address, first = found.key.rsplit("/", 2)
    return Block(ip_address(address), int(first), pool.slice_size)


def terms(record: Record, left_s: Mapping[int, int]) -> list[Holding]:
    """Return what a host holds whose term has just begun; ``left_s`` by lease, those of its quarantines."""
    return [
        Holding(
            block, record.host, datetime.fromtimestamp(since, UTC), record.term_s,
            quarantine_s=_quarantine_s(record, block, left_s),
        )
        for block, since in record.blocks.items()
    ]  # fmt: skip


def holding_of(taken: Found, block: Block, user: Record | None, left_s: Mapping[int, int]) -> Holding:
    """Return who has a block, or had it where nobody uses it any more; ``left_s`` by lease."""
    if user is None:
        told = json.loads(taken.value)
        return Holding(
            block, told["host"], datetime.fromtimestamp(told["since"], UTC), left_s[taken.lease], resting=True
        )
    since = datetime.fromtimestamp(user.blocks[block], UTC)
    return Holding(block, user.host, since, left_s[user.short], quarantine_s=_quarantine_s(user, block, left_s))


def users_of(taken: Iterable[Found], records: Iterable[Record], pool: Pool) -> dict[Block, Record]:
    """Return who uses which block: those whose record has it, and whom the key of the block names."""
    users = {(block, record.host): record for record in records for block in record.blocks}
    named = ((block_of(each, pool), json.loads(each.value)["host"]) for each in taken)
    return {block: users[block, host] for block, host in named if (block, host) in users}


def _quarantine_s(record: Record, block: Block, left_s: Mapping[int, int]) -> float:
    """Return what is left of a quarantine: something, as long as its key was there when it was looked for."""
    return max(1, left_s[record.quarantines[block]]) if block in record.quarantines else 0


def changes_of(found: Found, pool: Pool) -> list[Change]:
    """Return what became of a block, the newest last."""
    block = block_of(found, pool)
    return [
        Change(datetime.fromtimestamp(told_at, UTC), what, block, host, other)
        for told_at, what, host, other, *_ in json.loads(found.value)
    ]
