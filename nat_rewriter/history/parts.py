"""Parts: the SQLite files of a history. A live one takes sightings, a sealed one has sorted records."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from nat_rewriter.errors import StateError
from nat_rewriter.history.merging import Batch
from nat_rewriter.history.pages import Places, pack, unpack
from nat_rewriter.history.records import Records, joined, key_of, order_by, picked

SIDES = ("wire", "client")
PAGE_RECORDS = 1024
DRAFT = ".draft"
_FORMAT = 1
_APPLICATION_ID = 0x6E617463  # "natc"
_BUSY_S = 10.0
READ, _WRITE = "read history", "write history"
_EVENTS, _COMPLETE, _CARRIED = range(3)


class LivePart:
    """A part that is being written. Every ``append`` is on disk when it returns. Raises StateError."""

    def __init__(self, path: Path, session: str, slices: Sequence[str], since_ns: int) -> None:
        self.path, self.session, self.slices, self.since_ns = path, session, tuple(slices), since_ns
        self.sightings = 0  # that events brought: neither complete batches nor what was carried over
        self.written_bytes = 0
        facts = {"session": session, "slices": json.dumps(self.slices), "since_ns": str(since_ns)}
        journal = "CREATE TABLE journal (number INTEGER PRIMARY KEY, kind INTEGER, time_ns INTEGER, sightings BLOB)"
        with told(_WRITE, path):
            with _drafted(path, journal, facts):
                pass
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_S)
            self._database.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;")

    def append(self, batches: Sequence[Batch]) -> None:
        """Keep sightings, all or none."""
        rows = [
            (_COMPLETE if batch.complete else _EVENTS, batch.time_ns, _packed(batch.sightings)) for batch in batches
        ]
        with told(_WRITE, self.path):
            _insert(self._database, rows)
        self.written_bytes += sum(len(page) for _, _, page in rows)
        self.sightings += sum(len(batch.sightings) for batch in batches if not batch.complete)

    def close(self) -> None:
        """Give the file back."""
        with contextlib.suppress(sqlite3.Error):
            self._database.close()


def carry_into(path: Path, sightings: Records, time_ns: int) -> None:
    """Keep in a live part what was open when it began, while others may be writing to it. Raises StateError."""
    with told(_WRITE, path):
        database = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_S)
        with contextlib.closing(database):
            _insert(database, [(_CARRIED, time_ns, _packed(sightings))])


def _insert(database: sqlite3.Connection, rows: Sequence[tuple[int, int, bytes]]) -> None:
    database.execute("BEGIN IMMEDIATE")
    try:
        database.executemany("INSERT INTO journal (kind, time_ns, sightings) VALUES (?, ?, ?)", rows)
        database.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise


class Journal:
    """What a live part has, as a reader finds it."""

    def __init__(self, path: Path) -> None:
        with _opened(path, "mode=ro") as database:
            facts = dict(database.execute("SELECT name, value FROM fact"))
            rows = database.execute("SELECT kind, time_ns, sightings FROM journal ORDER BY number").fetchall()
            self.session, self.slices = facts["session"], tuple(json.loads(facts["slices"]))
            self.since_ns = int(facts["since_ns"])
            self.last_ns = max([self.since_ns, *(time_ns for _, time_ns, _ in rows)])
            self._rows = rows
        self.path = path

    def batches(self, having: Places = (), *, carried: bool = True) -> Iterator[Batch]:
        """Yield its batches in the order in which they are to be merged, with or without what was carried over.

        ``having`` chooses sightings by their bytes.
        """
        for kind, time_ns, page in sorted(self._rows, key=lambda row: row[0] != _CARRIED):
            if carried or kind != _CARRIED:
                yield Batch(_unpacked(page, self.path, having), time_ns, kind == _COMPLETE)


def write_sealed(path: Path, records: Records, session: str, slices: Sequence[str]) -> None:
    """Write a sealed part; its name appears when it is whole."""
    facts = {"session": session, "slices": json.dumps(tuple(slices)), "records": str(len(records))}
    page = "CREATE TABLE page (side INTEGER, first BLOB, last BLOB, low_ns INTEGER, high_ns INTEGER, records BLOB)"
    insert = "INSERT INTO page VALUES (?, ?, ?, ?, ?, ?)"
    with told(_WRITE, path), _drafted(path, page, facts) as database:
        for side, end in enumerate(SIDES):
            database.executemany(insert, _pages(records, side, end))
        database.execute("CREATE INDEX place ON page (side, last, first, low_ns, high_ns)")


class Wanted(NamedTuple):
    """What is to be read of a sealed part: by which end, from which key to which, of what time, having what bytes."""

    end: str
    low: bytes
    high: bytes
    since_ns: int
    until_ns: int
    having: Places = ()


def read_sealed(path: Path, wanted: Wanted) -> tuple[Records, tuple[str, ...]]:
    """Return records that have the bytes wanted, from pages that may have the keys and times; and the slices' names.

    A part that was deleted meanwhile has none.
    """
    question = (
        "SELECT records FROM page WHERE side = ? AND last >= ? AND first <= ? AND low_ns <= ? AND high_ns >= ?"
        " ORDER BY last"
    )
    if not path.exists():
        return joined([]), ()
    with _opened(path, "immutable=1") as database:
        values = (SIDES.index(wanted.end), wanted.low, wanted.high, wanted.until_ns, wanted.since_ns)
        found = joined([_unpacked(page, path, wanted.having) for (page,) in database.execute(question, values)])
        if not len(found):
            return found, ()
        (slices,) = database.execute("SELECT value FROM fact WHERE name = 'slices'").fetchone()
    return found, tuple(json.loads(slices))


def session_of(path: Path) -> str:
    """Return which recorder wrote a part."""
    with _opened(path, "mode=ro" if path.suffix == ".live" else "immutable=1") as database:
        (session,) = database.execute("SELECT value FROM fact WHERE name = 'session'").fetchone()
    return str(session)


@contextmanager
def told(operation: str, path: Path) -> Iterator[None]:
    """Turn what SQLite and the system refuse into StateError."""
    try:
        yield
    except OSError as error:
        raise StateError(operation, (error.strerror or str(error)).lower(), path) from None
    except sqlite3.OperationalError as error:
        raise StateError(operation, str(error), path) from None
    except (sqlite3.DatabaseError, ValueError, KeyError, TypeError) as error:
        reason = f"damaged, or not natctl's ({error}); move it away to read the rest"
        raise StateError(operation, reason, path) from None


@contextmanager
def _drafted(path: Path, table: str, facts: dict[str, str]) -> Iterator[sqlite3.Connection]:
    """Write a file under another name; it gets its own once the block has filled it, and it is on disk."""
    draft = path.with_suffix(DRAFT)
    draft.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as database:
        database.executescript(
            f"PRAGMA page_size=16384; PRAGMA application_id={_APPLICATION_ID}; PRAGMA user_version={_FORMAT};"
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; BEGIN;"
            f"CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID; {table};"
        )
        database.executemany("INSERT INTO fact VALUES (?, ?)", facts.items())
        yield database
        database.execute("COMMIT")
    _sync(draft)
    os.replace(draft, path)
    _sync(path.parent)


@contextmanager
def _opened(path: Path, option: str) -> Iterator[sqlite3.Connection]:
    with told(READ, path):
        # Unlike connect() alone, this says "no such file" where there is none.
        os.stat(path)
        database = sqlite3.connect(f"{path.absolute().as_uri()}?{option}", uri=True, timeout=_BUSY_S)
        with contextlib.closing(database):
            _check_format(database, path)
            yield database


def _check_format(database: sqlite3.Connection, path: Path) -> None:
    (owner,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if owner != _APPLICATION_ID:
        raise ValueError("another program's file")
    if version != _FORMAT:
        raise StateError(READ, f"written by another release of natctl, format {version}", path)


def _pages(records: Records, side: int, end: str) -> Iterator[tuple[Any, ...]]:
    ordered = picked(records, order_by(records, end))
    for at in range(0, len(ordered), PAGE_RECORDS):
        page = ordered[at : at + PAGE_RECORDS]
        times = int(page["start_ns"].min()), int(page["end_ns"].max())
        yield side, key_of(page[0], end), key_of(page[-1], end), *times, pack(page)


def _packed(sightings: Records) -> bytes:
    return pack(sightings) if len(sightings) else b""


def _unpacked(page: Any, path: Path, having: Places) -> Records:
    if page == b"":
        return joined([])
    with told(READ, path):
        if not isinstance(page, bytes):
            raise ValueError("a page is missing")
        return unpack(page, having)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
