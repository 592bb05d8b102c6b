"""The parts of etcd's questions, as its JSON gateway takes them: ranges of keys, changes, comparisons.

The names are those of etcd's API: etcd/api/etcdserverpb/rpc.proto.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Any

Request = dict[str, Any]


def key(name: str) -> Request:
    """Return the range that is one key."""
    return {"key": encoded(name)}


def changed_key(name: str, revision: int) -> Request:
    """Return the range that is one key if it has changed since a revision; it is counted in any case."""
    return {"key": encoded(name), "min_mod_revision": revision + 1}


def under(prefix: str) -> Request:
    """Return the range of all keys that begin so."""
    last = prefix.encode()
    return {"key": encoded(prefix), "range_end": encoded(last[:-1] + bytes([last[-1] + 1]))}


def keys_under(prefix: str) -> Request:
    """Return the range of all keys that begin so, without what they hold."""
    return under(prefix) | {"keys_only": True}


def put(name: str, value: str | bytes, lease: int = 0) -> Request:
    """Return the change that sets a key, until its lease ends."""
    return {"request_put": {"key": encoded(name), "value": encoded(value), "lease": lease}}


def put_again(name: str, value: str) -> Request:
    """Return the change that sets a key that is there, on the lease that it has."""
    return {"request_put": {"key": encoded(name), "value": encoded(value), "ignore_lease": True}}


def delete(name: str) -> Request:
    """Return the change that deletes a key."""
    return {"request_delete_range": {"key": encoded(name)}}


def at_revision(name: str, revision: int) -> Request:
    """Return the comparison that holds while a key is as it was at its last change; 0: while it is not there."""
    return {"key": encoded(name), "target": "MOD", "result": "EQUAL", "mod_revision": revision}


def untouched_since(keys: Request, revision: int) -> Request:
    """Return the comparison that holds while no key of a range has come or changed since a revision."""
    return {**keys, "target": "MOD", "result": "LESS", "mod_revision": revision + 1}


def encoded(text: str | bytes) -> str:
    """Return a key or value as JSON carries it."""
    return b64encode(text.encode() if isinstance(text, str) else text).decode()
