"""What it costs etcd to tell every host of every change."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from bench.fleet.filling import OF_HOST
from bench.fleet.place import POOL, PREFIX, cluster, pool_of, processor_s, store_of
from nat_rewriter.pool import etcd_requests as etcd
from nat_rewriter.pool.etcd_client import EtcdClient
from nat_rewriter.pool.etcd_records import nothing
from netns_lab.etcd_cluster import Cluster

_QUIET_S = 1.0  # without a word: all has been told
_CHUNK = 1 << 20
_EVENT = b'"mod_revision"'  # once in each
_HOSTS = f"{PREFIX}/host/{POOL}/"


class Told(NamedTuple):
    """Changes that so many watchers were told of, and what that cost the cluster on top of the changes."""

    watchers: int
    told: int  # events that arrived
    bytes_each: float
    etcd_s: float
    last_ms: float  # after the change, for the last watcher; the median of all changes

    @property
    def each_us(self) -> float:
        """Processor time for telling one watcher of one change, in microseconds."""
        return self.etcd_s / max(1, self.told) * 1e6


def watch_fan_out(counts: Sequence[int], changes: int) -> list[Told]:
    """Return what it costs to tell so many watchers of changes to hosts that hold a hundred slices each."""
    with cluster() as running:
        client = EtcdClient(store_of(running))
        alone, *found = [_measure(running, client, count, changes) for count in (0, *counts)]
        client.close()
    return [each._replace(etcd_s=max(0.0, each.etcd_s - alone.etcd_s)) for each in found]


def _measure(running: Cluster, client: EtcdClient, count: int, changes: int) -> Told:
    watchers = Watchers(running, count)
    try:
        watchers.until_quiet()  # each has been told that it watches
        before, events, size = processor_s(running), watchers.events, watchers.bytes
        lasts = sorted(_told_after(watchers, partial(_change, client, number)) for number in range(changes))
        watchers.until_quiet()
        spent = processor_s(running) - before
    finally:
        watchers.close()
    told = watchers.events - events
    return Told(count, told, (watchers.bytes - size) / max(1, told), spent, lasts[changes // 2] * 1000)


def _told_after(watchers: Watchers, change: Callable[[], object]) -> float:
    """Make a change; return the seconds until all have been told."""
    wanted, began = watchers.events + watchers.count, time.monotonic()
    change()
    while watchers.events < wanted and watchers.read(_QUIET_S):
        pass
    return time.monotonic() - began


def _change(client: EtcdClient, number: int) -> None:
    pool = pool_of(64 * 1024)
    blocks = [pool.block_at(number * OF_HOST + place) for place in range(OF_HOST)]
    client.change([], [etcd.put(f"{_HOSTS}h{number}", nothing("").with_more(blocks).text)])


class Watchers:
    """Connections on which a cluster tells of all changes to hosts; only counts what comes."""

    def __init__(self, running: Cluster, count: int) -> None:
        self.count, self.events, self.bytes = count, 0, 0
        self._selector = selectors.DefaultSelector()
        self._rests: dict[socket.socket, bytes] = {}
        question = json.dumps({"create_request": etcd.under(_HOSTS)})
        request = f"POST /v3/watch HTTP/1.1\r\nHost: etcd\r\nContent-Length: {len(question)}\r\n\r\n{question}"
        for number in range(count):
            connection = socket.create_connection(running.endpoints[number % len(running.endpoints)])
            connection.sendall(request.encode())
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ)
            self._rests[connection] = b""

    def close(self) -> None:
        """Watch no more."""
        for connection in self._rests:
            connection.close()
        self._selector.close()

    def until_quiet(self) -> None:
        """Read until nothing comes for a while."""
        while self.read(_QUIET_S):
            pass

    def read(self, wait_s: float) -> bool:
        """Read what has come; tell whether anything did within the time."""
        ready = self._selector.select(wait_s) if self._rests else []
        for key, _ in ready:
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            content = connection.recv(_CHUNK)
            if not content:
                raise ConnectionError("etcd ended a watch")
            self.bytes += len(content)
            self.events += (self._rests[connection] + content).count(_EVENT)
            self._rests[connection] = content[1 - len(_EVENT) :]
        return bool(ready)
