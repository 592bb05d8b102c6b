"""What etcd keeps of a pool as values: the record of a host, what is known of a block."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, NamedTuple

from nat_rewriter.model.pools import Block, Change, Holding, Pool
from nat_rewriter.pool.etcd_client import Found

_TOLD = 8  # changes of a block that are kept
Told = list[list[Any]]  # time, what, host, other host


class Record(NamedTuple):
    """What a host holds of a pool, and since when; ``revision`` is 0 where etcd knows nothing of it."""

    host: str
    revision: int
    short: int
    long: int
    blocks: dict[Block, float]
    term_s: float = 0.0  # what is left of the short lease, as etcd told it

    def with_more(self, blocks: Iterable[Block]) -> Record:
        """Return the record of a host that has got more."""
        return self._replace(blocks=self.blocks | dict.fromkeys(blocks, time.time()))

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

    def text(self, what: str, host: str, other: str | None = None) -> str:
        """Return what became of the block, with one thing more, as etcd keeps it."""
        return json.dumps([*self.told, [time.time(), what, host, other]][-_TOLD:])


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


def record_of(found: Found, pool: Pool) -> Record:
    """Return the record of a host by its key and what that holds."""
    told = json.loads(found.value)
    blocks = {Block(ip_address(address), first, pool.slice_size): since for address, first, since in told["blocks"]}
    return Record(found.key.rpartition("/")[2], found.revision, told["short"], told["long"], blocks)


def seen_of(taken: Sequence[Found], log: Sequence[Found]) -> Seen:
    """Return what is known of a block by its two keys, as far as they are there."""
    return Seen(bool(taken), json.loads(log[0].value) if log else [], log[0].revision if log else 0)


def block_of(found: Found, pool: Pool) -> Block:
    """Return the block whose key this is."""
    _, address, first = found.key.rsplit("/", 2)
    return Block(ip_address(address), int(first), pool.slice_size)


def terms(record: Record) -> list[Holding]:
    """Return what a host holds whose term has just begun."""
    times = ((block, datetime.fromtimestamp(since, UTC)) for block, since in record.blocks.items())
    return [Holding(block, record.host, since, record.term_s) for block, since in times]


def holding_of(taken: Found, block: Block, users: dict[Block, Record], left_s: dict[int, int]) -> Holding:
    """Return who has a block, or had it; ``left_s`` by lease."""
    told, user = json.loads(taken.value), users.get(block)
    since = datetime.fromtimestamp(user.blocks[block] if user else told["since"], UTC)
    return Holding(block, told["host"], since, left_s[user.short if user else taken.lease], user is None)


def changes_of(found: Found, pool: Pool) -> list[Change]:
    """Return what became of a block, the newest last."""
    block = block_of(found, pool)
    return [
        Change(datetime.fromtimestamp(told_at, UTC), what, block, host, other)
        for told_at, what, host, other in json.loads(found.value)
    ]
