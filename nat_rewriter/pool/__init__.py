"""Pools: slices of shared addresses that hosts hold for a time, kept in a store that all of them ask.

    configuration -> PoolStore.define      what there is to share
    PoolStore.acquire, renew, release      who may use which block, and until when

``sqlite`` keeps them in a file, for the processes of one host; ``etcd`` keeps them for a fleet. Both pass one suite of
tests.
"""

from __future__ import annotations

from nat_rewriter.model.pools import DEFAULT_STORE, StoreAddress
from nat_rewriter.pool.store import PoolStore

__all__ = ["PoolStore", "open_store"]


def open_store(address: StoreAddress | None) -> PoolStore:
    """Return the store at an address; None is that of a host that says nothing of it. Raises StateError."""
    address = address or DEFAULT_STORE
    if address.kind == "sqlite":
        from nat_rewriter.pool.sqlite_store import SqliteStore

        return SqliteStore(address.path)
    from nat_rewriter.pool.etcd_store import EtcdStore

    return EtcdStore(address)
