"""Pools in an SQLite file: for the processes of one host."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from nat_rewriter.errors import StateError
from nat_rewriter.model.moves import Move
from nat_rewriter.model.pools import Block, Change, Holding, Pool
from nat_rewriter.pool.sqlite_file import SqliteFile, since_boot_s
from nat_rewriter.pool.sqlite_hosts import SCHEMA as HOSTS_SCHEMA
from nat_rewriter.pool.sqlite_hosts import SqliteHosts
from nat_rewriter.pool.sqlite_moves import SCHEMA as MOVES_SCHEMA
from nat_rewriter.pool.sqlite_moves import SqliteMoves
from nat_rewriter.pool.store import (
    READ,
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

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MARK = 0x6E61746C  # application_id, "natl"
_VERSION = 1  # user_version: of the schema
_MOST_CHANGES = 100_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS boot (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS pool (name TEXT PRIMARY KEY, definition TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS holding (
    pool TEXT NOT NULL, address TEXT NOT NULL, first INTEGER NOT NULL, size INTEGER NOT NULL, host TEXT NOT NULL,
    since REAL NOT NULL, held_until REAL NOT NULL, rests_until REAL NOT NULL, PRIMARY KEY (pool, address, first));
CREATE INDEX IF NOT EXISTS holding_of_host ON holding (pool, host);
CREATE TABLE IF NOT EXISTS change (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, pool TEXT NOT NULL, what TEXT NOT NULL, address TEXT NOT NULL,
    first INTEGER NOT NULL, size INTEGER NOT NULL, host TEXT NOT NULL, other TEXT);
"""

Row = tuple[str, int, int, str, float, float, float]


class SqliteStore(PoolStore):
    """Terms are counted on the clock of the time since boot, which nobody sets; what was held before a boot rests."""

    moves: SqliteMoves

    def __init__(self, path: str) -> None:
        self._file = SqliteFile(path)
        self.moves, self.hosts = SqliteMoves(self._file), SqliteHosts(self._file)
        try:
            with self._file.reading():
                self._prepare()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def known_faults(self) -> list[str]:
        """Return nothing: SQLite has none that matter here."""
        return []

    def define(self, pool: Pool) -> bool:
        """Enter a pool, or its new terms; tell whether that changed anything."""
        with self._file.changing():
            known = self._definitions().get(pool.name)
            if known is not None:
                pool = new_terms(known, pool, [holding.block for holding in self._holdings(known)])
            self._file.execute("INSERT OR REPLACE INTO pool VALUES (?, ?)", (pool.name, pool_text(pool)))
        return known != pool

    def pools(self) -> list[Pool]:
        """Return the pools, by name."""
        with self._file.reading():
            return sorted(self._definitions().values(), key=lambda pool: pool.name)

    def holdings(self, name: str) -> list[Holding]:
        """Return what is held or rests, by address and port."""
        with self._file.reading():
            return self._holdings(self._pool(name))

    def acquire(self, name: str, host: str, count: int) -> list[Holding]:
        """Give a host so many more blocks, all or none, and renew what it has."""
        with self._file.changing():
            pool = self._pool(name)
            refuse_too_many(pool, host, len(self._of(pool, host)), count)
            for block in self._choose(pool, count):
                self._give(pool, block, host)
            self._extend(pool, host)
            return self._of(pool, host)

    def renew(self, name: str, host: str) -> list[Holding]:
        """Return what a host holds, for a full term from now on."""
        with self._file.changing():
            pool = self._pool(name)
            self._extend(pool, host)
            return self._of(pool, host)

    def release(self, name: str, host: str, blocks: Iterable[Block]) -> None:
        """Take blocks back from a host; they rest."""
        with self._file.changing():
            pool, wanted = self._pool(name), list(blocks)
            refuse_long(len(wanted), "release", name)
            self._refuse_others(pool, "release", host, wanted)
            now = since_boot_s()
            for block in wanted:
                self._file.execute(
                    "UPDATE holding SET held_until = ?, rests_until = ? WHERE pool = ? AND address = ? AND first = ?",
                    (now, now + pool.hold_down_s, name, str(block.address), block.first),
                )
                self._tell(pool, "released", block, host)

    def transfer(self, name: str, block: Block, giver: str, taker: str, move: Move | None = None) -> Holding:
        """Move a block from one host to another, for a full term of its own."""
        with self._file.changing():
            pool = self._pool(name)
            refuse_same_host(giver, taker)
            self._refuse_others(pool, "transfer", giver, [block])
            refuse_too_many(pool, taker, len(self._of(pool, taker)), 1)
            if move:
                self.moves.bring_on(move)
            self._give(pool, block, taker, tell=False)
            self._tell(pool, "transferred", block, giver, taker)
            (moved,) = [each for each in self._of(pool, taker) if each.block == block]
            return moved

    def history(self, name: str, block: Block | None = None, most: int = 1000) -> list[Change]:
        """Return what was told of a pool, or of one block, the newest last."""
        where, words = "pool = ?", [name]
        if block is not None:
            where, words = "pool = ? AND address = ? AND first = ?", [name, str(block.address), str(block.first)]
        with self._file.reading():
            self._pool(name)
            rows = self._file.execute(
                "SELECT time, what, address, first, size, host, other FROM change"
                f" WHERE {where} ORDER BY id DESC LIMIT ?",
                (*words, most),
            ).fetchall()
        return [
            Change(datetime.fromtimestamp(time_s, UTC), what, Block(ip_address(address), first, size), host, other)
            for time_s, what, address, first, size, host, other in reversed(rows)
        ]

    # inside a transaction

    def _prepare(self) -> None:
        (mark,) = self._file.execute("PRAGMA application_id").fetchone()
        (tables,) = self._file.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and mark != _MARK:
            raise StateError(READ, "another program's database, expected natctl's or a new file", self._file.path)
        (version,) = self._file.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise StateError(
                READ, f"written by a newer natctl: version {version}, expected {_VERSION}", self._file.path
            )
        self._file.execute("PRAGMA journal_mode = WAL")
        self._file.execute("PRAGMA synchronous = FULL")
        with self._file.changing():
            for statement in (_SCHEMA + HOSTS_SCHEMA + MOVES_SCHEMA).split(";"):
                self._file.execute(statement)
            self._file.execute(f"PRAGMA application_id = {_MARK}")
            self._file.execute(f"PRAGMA user_version = {_VERSION}")
            self._begin_boot(_BOOT_ID.read_text().strip())

    def _begin_boot(self, boot: str) -> None:
        """Let everything rest that was held before this boot: its terms were counted on another clock."""
        if self._file.execute("SELECT id FROM boot").fetchall() == [(boot,)]:
            return
        now = since_boot_s()
        for pool in self._definitions().values():
            self._file.execute(
                "UPDATE holding SET held_until = ?, rests_until = ? WHERE pool = ?",
                (now, now + pool.hold_down_s, pool.name),
            )
        self._file.execute("DELETE FROM here")
        self._file.execute("DELETE FROM boot")
        self._file.execute("INSERT INTO boot VALUES (?)", (boot,))

    def _definitions(self) -> dict[str, Pool]:
        return {name: pool_from(text) for name, text in self._file.execute("SELECT name, definition FROM pool")}

    def _pool(self, name: str) -> Pool:
        known = self._definitions()
        if name not in known:
            raise unknown_pool(name, known)
        return known[name]

    def _holdings(self, pool: Pool) -> list[Holding]:
        return self._found("pool = ? AND rests_until > ?", pool.name, since_boot_s())

    def _of(self, pool: Pool, host: str) -> list[Holding]:
        return self._found("pool = ? AND host = ? AND held_until > ?", pool.name, host, since_boot_s())

    def _found(self, where: str, *values: str | float) -> list[Holding]:
        now = since_boot_s()
        columns = "address, first, size, host, since, held_until, rests_until"
        rows = self._file.execute(f"SELECT {columns} FROM holding WHERE {where}", values)
        return sorted((_holding(row, now) for row in rows), key=lambda each: (each.block.address.version, each.block))

    def _choose(self, pool: Pool, count: int) -> list[Block]:
        """Return free blocks, by chance; only where the pool is nearly full by looking at all of it."""
        free = [block for block in random_blocks(pool, count) if self._is_free(pool, block)]
        if len(free) < count:
            taken = {each.block for each in self._holdings(pool)}
            free = [block for block in pool.blocks() if block not in taken]
            if len(free) < count:
                raise exhausted(pool, len(free), pool.block_count, count)
        return random.sample(free, count)

    def _is_free(self, pool: Pool, block: Block) -> bool:
        key = (pool.name, str(block.address), block.first)
        where = "pool = ? AND address = ? AND first = ? AND rests_until > ?"
        return not self._file.execute(f"SELECT 1 FROM holding WHERE {where}", (*key, since_boot_s())).fetchone()

    def _refuse_others(self, pool: Pool, operation: str, host: str, blocks: list[Block]) -> None:
        mine = {each.block for each in self._of(pool, host)}
        if others := [block for block in blocks if block not in mine]:
            raise not_held(operation, host, others)

    def _give(self, pool: Pool, block: Block, host: str, *, tell: bool = True) -> None:
        until = since_boot_s() + pool.ttl_s
        row = (
            pool.name,
            str(block.address),
            block.first,
            block.size,
            host,
            time.time(),
            until,
            until + pool.hold_down_s,
        )
        self._file.execute("INSERT OR REPLACE INTO holding VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        if tell:
            self._tell(pool, "acquired", block, host)

    def _extend(self, pool: Pool, host: str) -> None:
        now = since_boot_s()
        until = now + pool.ttl_s
        self._file.execute(
            "UPDATE holding SET held_until = ?, rests_until = ? WHERE pool = ? AND host = ? AND held_until > ?",
            (until, until + pool.hold_down_s, pool.name, host, now),
        )

    def _tell(self, pool: Pool, what: str, block: Block, host: str, other: str | None = None) -> None:
        row = (time.time(), pool.name, what, str(block.address), block.first, block.size, host, other)
        told = self._file.execute("INSERT INTO change VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        self._file.execute("DELETE FROM change WHERE id <= ?", ((told.lastrowid or 0) - _MOST_CHANGES,))


def _holding(row: Row, now: float) -> Holding:
    address, first, size, host, since, held_until, rests_until = row
    resting = held_until <= now
    left_s = (rests_until if resting else held_until) - now
    return Holding(Block(ip_address(address), first, size), host, datetime.fromtimestamp(since, UTC), left_s, resting)
