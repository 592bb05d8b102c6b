"""Where hosts are, and who holds what, in etcd.

::

    here/HOST                    where a host is; on a lease of its own
    host/POOL/HOST               what it holds of a pool: see etcd_store

The two lie side by side, so that one watch is for both.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable

from nat_rewriter.errors import StateError
from nat_rewriter.model.inbound import Holders, Peer
from nat_rewriter.model.pools import Block, Pool
from nat_rewriter.pool import etcd_requests as etcd
from nat_rewriter.pool.etcd_client import EtcdClient, Event, Found
from nat_rewriter.pool.etcd_records import record_of
from nat_rewriter.pool.etcd_requests import Request
from nat_rewriter.pool.hosts import HoldersWatch, Hosts, peer_from, peer_text
from nat_rewriter.pool.store import pool_from

Told = list[Event] | StateError


class EtcdHosts(Hosts):
    """Keeps where hosts are under a prefix of the store."""

    def __init__(self, client: EtcdClient, prefix: str) -> None:
        self._client, self._prefix = client, prefix

    def announce(self, peer: Peer, ttl_s: int) -> None:
        """Tell where a host is."""
        path, told = self._path(peer.host), peer_text(peer)
        (found,) = self._client.read([etcd.key(path)]).found
        if found and found[0].value == told.encode() and self._client.keep_alive(found[0].lease) >= ttl_s:
            return
        self._client.change([], [etcd.put(path, told, self._client.grant(ttl_s))])

    def depart(self, host: str) -> None:
        """Forget where a host is."""
        self._client.change([], [etcd.delete(self._path(host))])

    def holders(self) -> Holders:
        """Return who holds what, and where the hosts are."""
        return _Known(self._client, self._prefix).holders()

    def watch(self) -> HoldersWatch:
        """Let etcd tell."""
        return _Watching(self._client, self._prefix)

    def _path(self, host: str) -> str:
        return f"{self._prefix}/here/{host}"


class _Known:
    """What a host knows: everything at one revision, and what became of it since then."""

    def __init__(self, client: EtcdClient, prefix: str) -> None:
        self._prefix = prefix
        pools = client.read([etcd.under(f"{prefix}/pool/")]).found[0]
        self._pools = {pool.name: pool for pool in (pool_from(each.value) for each in pools)}
        self._held: dict[str, dict[str, frozenset[Block]]] = {}  # by host and key
        self._all: dict[str, frozenset[Block]] = {}
        self._peers: dict[str, Peer] = {}
        read = client.read_all([places(prefix)])
        self.revision = read.revision
        for each in read.found[0]:
            self._note(each.key, each)

    def follow(self, events: Iterable[Event]) -> None:
        """Take up what became of the keys. Raises StateError for a pool that was not there before."""
        for event in events:
            self._note(event.key, Found(event.key, event.value, event.revision, 0) if event.value is not None else None)

    def holders(self) -> Holders:
        """Return all of it."""
        return Holders(dict(self._all), dict(self._peers))

    def _note(self, key: str, found: Found | None) -> None:
        kind, *names, host = key.removeprefix(f"{self._prefix}/").split("/")
        if kind == "here" and found:
            self._peers[host] = peer_from(host, found.value)
        elif kind == "here":
            self._peers.pop(host, None)
        else:
            of_host = self._held.setdefault(host, {})
            of_host[key] = frozenset(record_of(found, self._pool(names[0])).blocks) if found else frozenset()
            self._all[host] = frozenset().union(*of_host.values())
            if not self._all[host]:
                del self._all[host], self._held[host]

    def _pool(self, name: str) -> Pool:
        if name not in self._pools:
            raise StateError("watch the store", "a pool that was not there before", name)
        return self._pools[name]


class _Watching(HoldersWatch):
    """A thread waits for etcd's word; after a failure everything is read again."""

    def __init__(self, client: EtcdClient, prefix: str) -> None:
        self._client, self._prefix = client, prefix
        self._known: _Known | None = None
        self._told: queue.SimpleQueue[Told] = queue.SimpleQueue()

    def close(self) -> None:
        """Listen no more; the thread ends with the next word of etcd, or with the process."""
        self._known = None
        self._told = queue.SimpleQueue()

    def wait(self, timeout_s: float) -> Holders | None:
        """Return who holds what once it has changed."""
        if self._known is None:
            self._told = queue.SimpleQueue()
            known = _Known(self._client, self._prefix)
            thread = threading.Thread(target=self._listen, args=(self._told, known.revision), daemon=True)
            thread.start()
            self._known = known
            return known.holders()
        try:
            told = self._told.get(timeout=timeout_s)
            self._take_up(self._known, told)
            while not self._told.empty():
                self._take_up(self._known, self._told.get())
        except queue.Empty:
            return None
        except StateError:
            self._known = None
            raise
        return self._known.holders()

    def _listen(self, told: queue.SimpleQueue[Told], revision: int) -> None:
        try:
            for events in self._client.watch(places(self._prefix), revision):
                if events:
                    told.put(events)
                if told is not self._told:
                    return
        except StateError as error:
            told.put(error)
        finally:
            told.put(StateError("watch the store", "nobody listens any more"))

    def _take_up(self, known: _Known, told: Told) -> None:
        if isinstance(told, StateError):
            raise told
        known.follow(told)


def places(prefix: str) -> Request:
    """Return the range of the keys that tell where hosts are and what they hold."""
    return etcd.under(f"{prefix}/here/") | {"range_end": etcd.under(f"{prefix}/host/")["range_end"]}
