"""Where hosts are, and who holds what, in the SQLite file: for the processes of one host, in several namespaces."""

from __future__ import annotations

import time
from ipaddress import ip_address

from nat_rewriter.model.inbound import Holders, Peer
from nat_rewriter.model.pools import Block
from nat_rewriter.pool.hosts import HoldersWatch, Hosts, peer_from, peer_text
from nat_rewriter.pool.sqlite_file import SqliteFile, since_boot_s

SCHEMA = "CREATE TABLE IF NOT EXISTS here (host TEXT PRIMARY KEY, told TEXT NOT NULL, until REAL NOT NULL);"
_LOOK_S = 0.25
_OFTEN_S = 1.0  # terms end without a change to the file


class SqliteHosts(Hosts):
    """Ends are counted on the clock of the time since boot."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    def announce(self, peer: Peer, ttl_s: int) -> None:
        """Tell where a host is."""
        with self._file.changing():
            self._file.execute("DELETE FROM here WHERE until <= ?", (since_boot_s(),))
            row = (peer.host, peer_text(peer), since_boot_s() + ttl_s)
            self._file.execute("INSERT OR REPLACE INTO here VALUES (?, ?, ?)", row)

    def depart(self, host: str) -> None:
        """Forget where a host is."""
        with self._file.changing():
            self._file.execute("DELETE FROM here WHERE host = ?", (host,))

    def holders(self) -> Holders:
        """Return who holds what, and where the hosts are."""
        with self._file.reading():
            now = (since_boot_s(),)
            held = self._file.execute("SELECT address, first, size, host FROM holding WHERE held_until > ?", now)
            blocks = {Block(ip_address(address), first, size): host for address, first, size, host in held}
            here = self._file.execute("SELECT host, told FROM here WHERE until > ?", now).fetchall()
        return Holders.of(blocks, {host: peer_from(host, told) for host, told in here})

    def watch(self) -> HoldersWatch:
        """Look again and again."""
        return _Looking(self)

    def version(self) -> int:
        """Return a number that changes when another connection changes the file."""
        with self._file.reading():
            return self._file.version()


class _Looking(HoldersWatch):
    def __init__(self, hosts: SqliteHosts) -> None:
        self._hosts = hosts
        self._seen: Holders | None = None
        self._version, self._due = -1, 0.0

    def close(self) -> None:
        """Nothing is held."""

    def wait(self, timeout_s: float) -> Holders | None:
        """Return who holds what once it has changed."""
        end = time.monotonic() + timeout_s
        while (found := self._look()) == self._seen:
            left = end - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(_LOOK_S, left))
        self._seen = found
        return found

    def _look(self) -> Holders | None:
        version = self._hosts.version()
        if version == self._version and time.monotonic() < self._due:
            return self._seen
        self._version, self._due = version, time.monotonic() + _OFTEN_S
        return self._hosts.holders()
