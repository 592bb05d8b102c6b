"""Moves of slices in etcd.

::

    move/POOL/ADDRESS/PORT      who gives, who takes, how far it is; on a lease of its own
    parcel/POOL/TOKEN/NUMBER    what the taker is to fetch, in parts that fit into a request; on the same lease
"""

from __future__ import annotations

import random
import threading
import time
from ipaddress import ip_address

from nat_rewriter.errors import StateError
from nat_rewriter.model.moves import LASTS_S, MOST_PACKED, Move, move_from, move_text
from nat_rewriter.model.pools import Block, Pool
from nat_rewriter.pool import etcd_requests as etcd
from nat_rewriter.pool.etcd_client import EtcdClient, Found
from nat_rewriter.pool.etcd_requests import Request
from nat_rewriter.pool.moves import Alarm, Moves, overtaken, refuse_large, refuse_unfinished

_AGAIN_S = (1.0, 5.0)
_PART = 512 << 10  # bytes: a request has at most 1.5 MiB (--max-request-bytes)


class EtcdMoves(Moves):
    """The store's version of a move is the revision of its key."""

    def __init__(self, client: EtcdClient, prefix: str) -> None:
        self._client, self._prefix = client, prefix

    def announce(self, pool: Pool, block: Block, giver: str, taker: str) -> Move:
        """Ask both hosts to move a block."""
        asked = Move.new(pool.name, block, giver, taker)
        path = self._path(asked)
        (there,) = self._client.read([etcd.key(path)]).found
        for each in there:
            refuse_unfinished(self._move(each))
        lease = self._client.grant(pool.ttl_s + LASTS_S)
        unchanged = etcd.at_revision(path, there[0].revision if there else 0)
        if not self._client.change([unchanged], [etcd.put(path, self._text(asked), lease)]):
            raise overtaken(block)
        (found,) = self._client.read([etcd.key(path)]).found
        return self._move(found[0]) if found else asked

    def under_way(self) -> list[Move]:
        """Return the moves of all pools."""
        (found,) = self._client.read([etcd.under(f"{self._prefix}/move/")]).found
        return [self._move(each) for each in found]

    def alarm(self) -> Alarm:
        """Begin to listen for changes of moves."""
        return _WatchAlarm(self._client, etcd.under(f"{self._prefix}/move/"))

    def answer(self, after: Move) -> bool:
        """Bring a move to another stage, if it is still at the version that was seen."""
        return self._client.change([self.standing(after)], [self.brought_on(after)])

    def refuse_overtaken(self, move: Move) -> None:
        """Raise NatctlError for a move that is at another version by now."""
        (found,) = self._client.read([etcd.key(self._path(move))]).found
        if not found or found[0].revision != move.version:
            raise overtaken(move.block)

    def standing(self, move: Move) -> Request:
        """Return the comparison that holds while a move is at the version that was seen."""
        return etcd.at_revision(self._path(move), move.version)

    def brought_on(self, after: Move) -> Request:
        """Return the change that brings a move to another stage."""
        return etcd.put_again(self._path(after), self._text(after))

    def pack(self, move: Move, flows: bytes) -> None:
        """Put down what the taker is to fetch."""
        refuse_large(flows)
        (found,) = self._client.read([etcd.key(self._path(move))]).found
        if not found:
            raise overtaken(move.block)
        for number, start in enumerate(range(0, len(flows), _PART)):
            part = etcd.put(self._part_path(move, number), flows[start : start + _PART], found[0].lease)
            self._client.change([], [part])

    def unpack(self, move: Move) -> bytes:
        """Return what the giver has put down."""
        flows = b""
        for number in range(-(-MOST_PACKED // _PART)):
            (found,) = self._client.read([etcd.key(self._part_path(move, number))]).found
            flows += found[0].value if found else b""
            if not found or len(found[0].value) < _PART:
                break
        return flows

    def _path(self, move: Move) -> str:
        return f"{self._prefix}/move/{move.pool}/{move.block.address}/{move.block.first:05d}"

    def _part_path(self, move: Move, number: int) -> str:
        return f"{self._prefix}/parcel/{move.pool}/{move.token}/{number:04d}"

    def _text(self, move: Move) -> str:
        return f"{move.block.size} {move_text(move)}"

    def _move(self, found: Found) -> Move:
        _, pool, address, first = found.key.rsplit("/", 3)
        size, _, told = found.value.decode().partition(" ")
        return move_from(pool, Block(ip_address(address), int(first), int(size)), told, found.revision)


class _WatchAlarm(Alarm):
    """A thread waits for etcd's word. Where that ends it rings, and a while later it begins anew."""

    def __init__(self, client: EtcdClient, keys: Request) -> None:
        self._client, self._keys = client, keys
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None
        self._due = 0.0

    def rung(self) -> bool:
        """Tell whether etcd has told of a change."""
        if self._thread is None or not self._thread.is_alive():
            self._begin()
        changed = self._changed.is_set()
        self._changed.clear()
        return changed

    def _begin(self) -> None:
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + random.uniform(*_AGAIN_S)
        revision = self._client.read([self._keys | {"count_only": True}]).revision
        self._thread = threading.Thread(target=self._listen, args=(revision,), name="natctl-moves", daemon=True)
        self._thread.start()
        self._changed.set()

    def _listen(self, revision: int) -> None:
        try:
            for events in self._client.watch(self._keys, revision):
                if events:
                    self._changed.set()
        except StateError:
            self._changed.set()
