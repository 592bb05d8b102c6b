"""Embedded engines side by side: how fast records go in, what they weigh, how fast they are found again.

Engines that are not installed are left out. Each gets the same batches; a batch is on disk before the next one. Beside
the writer thread another thread of the same interpreter works as the event loop does; how much of its speed it keeps,
and its longest pause, is measured too.
"""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np

from bench.history.flows import Traffic
from nat_rewriter.history.directory import live_path, remove_part, sealed_path
from nat_rewriter.history.merging import Batch
from nat_rewriter.history.parts import Journal, LivePart, read_sealed, write_sealed
from nat_rewriter.history.reader import Question
from nat_rewriter.history.records import RECORD_DTYPE, Records, joined, key_of

BATCH = 10_000
_AT_ONCE = 50_000_000
_COLUMNS = ("wire", "wire_port", "protocol", "start_ns", "end_ns", "client", "client_port", "remote", "remote_port")
_COLUMNS += ("id", "packets_out", "packets_in", "bytes_out", "bytes_in")  # type: ignore[assignment]


class Engine(ABC):
    """A store in a directory of its own."""

    name = ""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @abstractmethod
    def insert(self, records: Records) -> None:
        """Keep records, so that another process, or the next one after a kill, finds them."""

    def finish(self) -> None:  # noqa: B027
        """Do what is left to do once a part is full."""

    def close(self) -> None:  # noqa: B027
        """Give everything back, so that its size can be told."""

    @abstractmethod
    def find(self, address: int, port: int) -> int:
        """Return how many records an address and port has."""


def _columns(records: Records) -> dict[str, Any]:
    plain = {name: records[name] for name in records.dtype.names or () if records[name].ndim == 1}
    plain |= {end: records[end][:, 1] for end in ("wire", "client", "remote")}
    for name in ("packets", "bytes"):
        plain |= {f"{name}_out": records[name][:, 0], f"{name}_in": records[name][:, 1]}
    return {name: np.ascontiguousarray(plain[name]) for name in _COLUMNS}


def _sqlite(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    return database


class SqliteRows(Engine):
    """A row a record, with an index by wire and one by client."""

    name = "SQLite, a row a record, 2 indices"
    indices = True

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.database = _sqlite(directory / "rows")
        self.database.execute(f"CREATE TABLE flow ({', '.join(f'{name} INTEGER' for name in _COLUMNS)})")
        if self.indices:
            self._index()

    def _index(self) -> None:
        self.database.execute("CREATE INDEX by_wire ON flow(wire, wire_port, start_ns)")
        self.database.execute("CREATE INDEX by_client ON flow(client, start_ns)")

    def insert(self, records: Records) -> None:
        rows = zip(*(column.tolist() for column in _columns(records).values()), strict=True)
        self.database.execute("BEGIN")
        self.database.executemany(f"INSERT INTO flow VALUES ({', '.join('?' * len(_COLUMNS))})", rows)
        self.database.execute("COMMIT")

    def close(self) -> None:
        self.database.close()

    def find(self, address: int, port: int) -> int:
        question = "SELECT * FROM flow WHERE wire = ? AND wire_port = ?"
        return len(self.database.execute(question, (address, port)).fetchall())


class SqliteRowsLater(SqliteRows):
    """The same, with the indices made when the part is full."""

    name = "SQLite, a row a record, indices later"
    indices = False

    def finish(self) -> None:
        self._index()


class SqlitePages(Engine):
    """What history does: batches as pages in a journal, and sorted pages once the part is full."""

    name = "SQLite, packed pages"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._live = LivePart(live_path(directory, 1), "made-up", ["slice"] * 16, 0)
        self._sealed: Path | None = None

    def insert(self, records: Records) -> None:
        self._live.append([Batch(records, 0)])

    def finish(self) -> None:
        self._live.close()
        records = joined([batch.sightings for batch in Journal(self._live.path).batches()])
        self._sealed = sealed_path(self._live.path, 0, int(records["end_ns"].max()))
        write_sealed(self._sealed, records, "made-up", ["slice"] * 16)
        remove_part(self._live.path)

    def find(self, address: int, port: int) -> int:
        assert self._sealed
        question = Question("wire", ip_address(address), port)
        return len(read_sealed(self._sealed, question.wanted)[0])


class DuckDb(Engine):
    """Columns; the records of a batch go in without becoming objects."""

    name = "DuckDB, sorted once full"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        import duckdb

        self.database = duckdb.connect(str(directory / "duck"))
        self.database.execute("SET threads = 1")
        types = {name: "USMALLINT" if "port" in name else "UBIGINT" for name in _COLUMNS}
        self.database.execute(f"CREATE TABLE flow ({', '.join(f'{name} {kind}' for name, kind in types.items())})")

    def insert(self, records: Records) -> None:
        batch = _columns(records)
        self.database.register("batch", batch)
        self.database.execute("INSERT INTO flow SELECT * FROM batch")

    def finish(self) -> None:
        self.database.execute("CREATE TABLE by_wire AS SELECT * FROM flow ORDER BY wire, wire_port")
        self.database.execute("CREATE TABLE by_client AS SELECT * FROM flow ORDER BY client")
        self.database.execute("DROP TABLE flow")
        self.database.execute("CHECKPOINT")

    def close(self) -> None:
        self.database.close()

    def find(self, address: int, port: int) -> int:
        question = "SELECT * FROM by_wire WHERE wire = ? AND wire_port = ?"
        return len(self.database.execute(question, [address, port]).fetchall())


class Lmdb(Engine):
    """A key for the wire with the record behind it, a key for the client that points there."""

    name = "LMDB"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        import lmdb

        self.database = lmdb.open(str(directory / "lmdb"), map_size=1 << 36, max_dbs=2, writemap=False)
        self.by_wire = self.database.open_db(b"wire")
        self.by_client = self.database.open_db(b"client")

    def insert(self, records: Records) -> None:
        wire, client = _ordered_keys(records, "wire"), _ordered_keys(records, "client")
        bodies = [record[8:] for record in _bodies(records)]
        with self.database.begin(write=True) as change:
            change.cursor(self.by_wire).putmulti(zip(wire, bodies, strict=True))
            change.cursor(self.by_client).putmulti(zip(client, wire, strict=True))

    def close(self) -> None:
        self.database.close()

    def find(self, address: int, port: int) -> int:
        wanted = bytes([4]) + address.to_bytes(16, "big") + port.to_bytes(2, "big")
        found = 0
        with self.database.begin() as look, look.cursor(self.by_wire) as cursor:
            cursor.set_range(wanted)
            for key, _ in cursor:
                if not key.startswith(wanted):
                    break
                found += 1
        return found


class Rocks(Engine):
    """The same keys, in a log-structured store."""

    name = "RocksDB (rocksdict)"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        from rocksdict import Options, Rdict, WriteOptions

        self.database = Rdict(str(directory / "rocks"), Options(raw_mode=True))
        self._write = WriteOptions()
        self._write.sync = True

    def insert(self, records: Records) -> None:
        from rocksdict import WriteBatch

        change = WriteBatch(raw_mode=True)
        wire, client = _ordered_keys(records, "wire"), _ordered_keys(records, "client")
        for own, other, body in zip(wire, client, _bodies(records), strict=True):
            change.put(b"w" + own, body)
            change.put(b"c" + other, own)
        self.database.write(change, self._write)

    def finish(self) -> None:
        self.database.flush()

    def close(self) -> None:
        self.database.close()

    def find(self, address: int, port: int) -> int:
        wanted = b"w" + bytes([4]) + address.to_bytes(16, "big") + port.to_bytes(2, "big")
        found = 0
        for key, _ in self.database.items(from_key=wanted):
            if not key.startswith(wanted):
                break
            found += 1
        return found


def _ordered_keys(records: Records, end: str) -> list[bytes]:
    starts = records["start_ns"].astype(">u8").tobytes()
    return [key_of(record, end) + starts[8 * row : 8 * row + 8] for row, record in enumerate(records)]


def _bodies(records: Records) -> list[bytes]:
    return [bytes(one) for one in records.view(np.dtype((np.void, RECORD_DTYPE.itemsize)))]


ENGINES = (SqlitePages, SqliteRowsLater, SqliteRows, DuckDb, Lmdb, Rocks)


@dataclass(frozen=True, slots=True)
class Measured:
    """What an engine did."""

    name: str
    inserts: float  # records a second, alone
    beside: float  # the same beside a busy event loop
    kept: float  # share of its speed that the loop kept
    pause_ms: float  # the loop's longest
    finish: float  # records a second that a full part was made ready at
    size: float  # bytes a record
    first_ms: float
    lookup_ms: float
    reader: str  # whether another process can read meanwhile

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield what was measured, as names and text."""
        yield self.name, ""
        yield "  inserts", f"{self.inserts:,.0f}/s alone, {self.beside:,.0f}/s beside a busy event loop"
        yield "  the event loop", f"keeps {self.kept:.0%} of its speed, pauses for up to {self.pause_ms:.0f} ms"
        ready = f"{self.finish:,.0f} records/s" if self.finish < _AT_ONCE else "nothing to do"
        yield "  a full part made ready", ready
        yield "  size", f"{self.size:.0f} bytes a record"
        yield "  lookup", f"{self.lookup_ms:.2f} ms, the first one {self.first_ms:.2f} ms"
        yield "  read by another process", self.reader


class _Loop(threading.Thread):
    """Small steps of Python and numpy, as following events is."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.steps, self.pause_s, self.stopped = 0, 0.0, False
        self._numbers = np.arange(4096, dtype=np.uint64)

    def run(self) -> None:
        before = time.perf_counter()
        while not self.stopped:
            dict.fromkeys((self._numbers * np.uint64(3)).tolist())
            now = time.perf_counter()
            self.pause_s, before, self.steps = max(self.pause_s, now - before), now, self.steps + 1


@contextlib.contextmanager
def _looping() -> Iterator[_Loop]:
    loop = _Loop()
    loop.start()
    try:
        yield loop
    finally:
        loop.stopped = True
        loop.join()


def _loop_speed(seconds: float = 1.0) -> float:
    with _looping() as loop:
        time.sleep(seconds)
        return loop.steps / seconds


def _insert_all(engine: Engine, batches: list[Records]) -> float:
    started = time.perf_counter()
    for batch in batches:
        engine.insert(batch)
    return time.perf_counter() - started


def measure(kind: type[Engine], batches: list[Records], alone: float, place: Path) -> Measured:
    count = sum(map(len, batches))
    few = batches[: max(1, len(batches) // 4)]
    with tempfile.TemporaryDirectory(dir=place) as directory:
        engine = kind(Path(directory))
        with _looping() as loop:
            beside = _insert_all(engine, few)
        kept = loop.steps / beside / alone
    with tempfile.TemporaryDirectory(dir=place) as directory:
        engine = kind(Path(directory))
        seconds = _insert_all(engine, batches)
        reader = _read_beside(kind, Path(directory))
        started = time.perf_counter()
        engine.finish()
        finish = time.perf_counter() - started
        first, usual = _look_up(engine, batches)
        engine.close()
        size = int(subprocess.run(["du", "-sB1", directory], capture_output=True, check=True).stdout.split()[0])
    return Measured(
        kind.name, count / seconds, sum(map(len, few)) / beside, kept, loop.pause_s * 1e3, count / finish,
        size / count, first * 1e3, usual * 1e3, reader,
    )  # fmt: skip


def _look_up(engine: Engine, batches: list[Records]) -> tuple[float, float]:
    took = []
    for record in batches[len(batches) // 2][:200]:
        started = time.perf_counter()
        assert engine.find(int(record["wire"][1]), int(record["wire_port"])) > 0
        took.append(time.perf_counter() - started)
    return took[0], float(np.median(took))


_SQLITE_READER = "import sqlite3; sqlite3.connect('file:{}?mode=ro', uri=True).execute('SELECT * FROM sqlite_master')"
_READERS = {
    "rows": _SQLITE_READER,
    "00000001.live": _SQLITE_READER,
    "duck": "import duckdb; duckdb.connect('{}', read_only=True)",
    "lmdb": "import lmdb; lmdb.open('{}', readonly=True, max_dbs=2)",
    "rocks": "from rocksdict import *; Rdict('{}', Options(raw_mode=True), access_type=AccessType.read_only())",
}


def _read_beside(kind: type[Engine], directory: Path) -> str:
    """Tell whether another process may open the store while it is written."""
    path = next(directory / name for name in _READERS if (directory / name).exists())
    done = subprocess.run([sys.executable, "-c", _READERS[path.name].format(path)], capture_output=True, check=False)
    return "yes" if done.returncode == 0 else "no"


def run(count: int, place: Path) -> Iterator[Measured]:
    """Yield what each engine that is installed does."""
    batches = list(Traffic().batches(count, BATCH))
    alone = _loop_speed()
    for kind in ENGINES:
        try:
            yield measure(kind, batches, alone, place)
        except ImportError as error:
            print(f"{kind.name}: left out: {error}", file=sys.stderr)
