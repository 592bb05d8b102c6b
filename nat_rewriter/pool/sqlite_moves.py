"""Moves of slices in the SQLite file: for the processes of one host, each with a network namespace of its own."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from nat_rewriter.model.moves import LASTS_S, Move, move_from, move_text
from nat_rewriter.model.pools import Block, Pool
from nat_rewriter.pool.moves import Alarm, Moves, overtaken, refuse_large, refuse_unfinished
from nat_rewriter.pool.sqlite_file import SqliteFile, since_boot_s

SCHEMA = """
CREATE TABLE IF NOT EXISTS move (
    pool TEXT NOT NULL, address TEXT NOT NULL, first INTEGER NOT NULL, size INTEGER NOT NULL, told TEXT NOT NULL,
    version INTEGER NOT NULL, ends REAL NOT NULL, flows BLOB, PRIMARY KEY (pool, address, first));
"""
_BLOCK = "pool = ? AND address = ? AND first = ?"


class SqliteMoves(Moves):
    """Ends are counted on the clock of the time since boot."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    def announce(self, pool: Pool, block: Block, giver: str, taker: str) -> Move:
        """Ask both hosts to move a block."""
        asked = Move.new(pool.name, block, giver, taker)
        with self._file.changing():
            for there in self._found():
                if (there.pool, there.block) == (pool.name, block):
                    refuse_unfinished(there)
                    asked = replace(asked, version=there.version + 1)
            self._file.execute("DELETE FROM move WHERE ends <= ?", (since_boot_s(),))
            row = (*_key(asked), block.size, move_text(asked), asked.version, since_boot_s() + pool.ttl_s + LASTS_S)
            self._file.execute("INSERT OR REPLACE INTO move VALUES (?, ?, ?, ?, ?, ?, ?, NULL)", row)
        return asked

    def under_way(self) -> list[Move]:
        """Return the moves of all pools."""
        with self._file.reading():
            return self._found()

    def alarm(self) -> Alarm:
        """Begin to listen for changes of the file."""
        return _FileAlarm(self._file)

    def answer(self, after: Move) -> bool:
        """Bring a move to another stage, if it is still at the version that was seen."""
        with self._file.changing():
            return self._answered(after)

    def bring_on(self, after: Move) -> None:
        """The same inside of a transaction of the store's. Raises NatctlError where it is at another version."""
        if not self._answered(after):
            raise overtaken(after.block)

    def pack(self, move: Move, flows: bytes) -> None:
        """Put down what the taker is to fetch."""
        refuse_large(flows)
        with self._file.changing():
            self._file.execute(f"UPDATE move SET flows = ? WHERE {_BLOCK}", (flows, *_key(move)))

    def unpack(self, move: Move) -> bytes:
        """Return what the giver has put down."""
        with self._file.reading():
            row = self._file.execute(
                f"SELECT flows FROM move WHERE {_BLOCK} AND ends > ?", (*_key(move), since_boot_s())
            ).fetchone()
        return row[0] or b"" if row else b""

    def _found(self) -> list[Move]:
        rows = self._file.execute(
            "SELECT pool, address, first, size, told, version FROM move WHERE ends > ?", (since_boot_s(),)
        )
        return [
            move_from(pool, Block(ip_address(address), first, size), told, version)
            for pool, address, first, size, told, version in rows
        ]

    def _answered(self, after: Move) -> bool:
        done = self._file.execute(
            f"UPDATE move SET told = ?, version = version + 1 WHERE {_BLOCK} AND version = ? AND ends > ?",
            (move_text(after), *_key(after), after.version, since_boot_s()),
        )
        return bool(done.rowcount)


class _FileAlarm(Alarm):
    def __init__(self, file: SqliteFile) -> None:
        self._file, self._version = file, -1

    def rung(self) -> bool:
        """Tell whether another connection has changed the file."""
        before = self._version
        with self._file.reading():
            self._version = self._file.version()
        return self._version != before


def _key(move: Move) -> tuple[str, str, int]:
    return move.pool, str(move.block.address), move.block.first
