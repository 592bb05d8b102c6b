"""The SQLite file of a store, which several processes of one host share."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from nat_rewriter.errors import StateError
from nat_rewriter.pool.store import CHANGE, READ

_PATIENCE_S = 2.0


class SqliteFile:
    """An open file. What goes wrong while it is read or changed is raised as StateError, with its path."""

    def __init__(self, path: str) -> None:
        self.path = path
        with self.reading():
            Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def execute(self, statement: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        """Run a statement, inside of :meth:`reading` or :meth:`changing`."""
        return self._database.execute(statement, values)

    def version(self) -> int:
        """Return a number that changes when another connection changes the file."""
        return int(self.execute("PRAGMA data_version").fetchone()[0])

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """Statements that only read, each by itself."""
        return self._told(READ)

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """A transaction that begins by keeping other writers out."""
        with self._told(CHANGE):
            self.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self.execute("ROLLBACK")
                raise
            self.execute("COMMIT")

    @contextlib.contextmanager
    def _told(self, operation: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StateError(operation, str(error).lower(), self.path) from error


def since_boot_s() -> float:
    """Return the seconds since boot, by which terms are counted: nobody sets that clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
