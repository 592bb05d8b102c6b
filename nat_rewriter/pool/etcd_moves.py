"""Moves of slices in etcd.

::

    move/POOL/ADDRESS/PORT            who gives, who takes, how far it is; on a lease of its own
    parcel/POOL/ADDRESS/PORT/NUMBER   what the taker is to fetch, in parts that fit into a request; on the same lease
"""

from __future__ import annotations

from ipaddress import ip_address

from nat_rewriter.model.moves import LASTS_S, Move, move_from, move_text
from nat_rewriter.model.pools import Block, Pool
from nat_rewriter.pool import etcd_requests as etcd
from nat_rewriter.pool.etcd_client import EtcdClient, Found
from nat_rewriter.pool.etcd_requests import Request
from nat_rewriter.pool.moves import overtaken, refuse_large, refuse_unfinished

_PART = 512 << 10  # bytes: a request has at most 1.5 MiB (--max-request-bytes)


class EtcdMoves:
    """The store's version of a move is the revision of its key."""

    def __init__(self, client: EtcdClient, prefix: str) -> None:
        self._client, self._prefix = client, prefix

    def announce(self, pool: Pool, block: Block, giver: str, taker: str) -> Move:
        """Ask both hosts to move a block."""
        asked = Move(pool.name, block, giver, taker)
        path = self._path("move", asked)
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

    def answer(self, after: Move) -> bool:
        """Bring a move to another stage, if it is still at the version that was seen."""
        return self._client.change([self.standing(after)], [self.brought_on(after)])

    def standing(self, move: Move) -> Request:
        """Return the comparison that holds while a move is at the version that was seen."""
        return etcd.at_revision(self._path("move", move), move.version)

    def brought_on(self, after: Move) -> Request:
        """Return the change that brings a move to another stage."""
        return etcd.put_again(self._path("move", after), self._text(after))

    def pack(self, move: Move, flows: bytes) -> None:
        """Put down what the taker is to fetch."""
        refuse_large(flows)
        (found,) = self._client.read([etcd.key(self._path("move", move))]).found
        if not found:
            raise overtaken(move.block)
        for number, start in enumerate(range(0, len(flows), _PART)):
            part = f"{self._path('parcel', move)}/{number:04d}"
            self._client.change([], [etcd.put(part, flows[start : start + _PART], found[0].lease)])

    def unpack(self, move: Move) -> bytes:
        """Return what the giver has put down."""
        (parts,) = self._client.read_all([etcd.under(f"{self._path('parcel', move)}/")]).found
        return b"".join(each.value for each in parts)

    def _path(self, kind: str, move: Move) -> str:
        return f"{self._prefix}/{kind}/{move.pool}/{move.block.address}/{move.block.first:05d}"

    def _text(self, move: Move) -> str:
        return f"{move.block.size} {move_text(move)}"

    def _move(self, found: Found) -> Move:
        _, pool, address, first = found.key.rsplit("/", 3)
        size, _, told = found.value.decode().partition(" ")
        return move_from(pool, Block(ip_address(address), int(first), int(size)), told, found.revision)
