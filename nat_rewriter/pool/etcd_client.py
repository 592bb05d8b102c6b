"""What pools ask of etcd: reads and changes, each one transaction, and leases; at whichever endpoint answers."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator, Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

from nat_rewriter.errors import NatctlError, StateError
from nat_rewriter.model.pools import StoreAddress
from nat_rewriter.pool.etcd_gateway import Endpoint, Refused, tls_of
from nat_rewriter.pool.etcd_requests import Request, encoded

MOST_IN_ONE = 128  # operations of a transaction: etcd's --max-txn-ops
_PAGE = 50_000  # keys; etcd counts those that are left anew with each
_OF_ENDPOINT = ("connection", "timed out", "timeout", "no leader", "leader changed", "unavailable", "stopped")
_OLD_TOKEN = ("invalid auth token", "revision in header is old")


class Found(NamedTuple):
    """A key that is there."""

    key: str
    value: bytes
    revision: int  # of its last change
    lease: int


class Read(NamedTuple):
    """What several ranges held at one revision of the whole store, and how many keys each has."""

    revision: int
    found: list[list[Found]]
    counts: list[int]


class Event(NamedTuple):
    """What became of a key; ``value`` is None where it is gone."""

    key: str
    value: bytes | None
    revision: int


class EtcdClient:
    """Asks the endpoints in turn, beginning with the one that answered last.

    A change that was sent and not answered may have been made: who repeats it compares with what is there.
    Raises StateError where none answers, where the cluster has no majority, and where it refuses this client.
    """

    def __init__(self, address: StoreAddress) -> None:
        self._address = address
        tls = tls_of(address)
        self._endpoints = [Endpoint(host, port, address.timeout_s, tls) for host, port in address.endpoints]
        self._token = ""

    def close(self) -> None:
        """Close the connections."""
        for endpoint in self._endpoints:
            endpoint.close()

    def read(self, ranges: Sequence[Request]) -> Read:
        """Return what several ranges hold, all at one moment; the answer is that of a majority."""
        answer = self._transaction([], [{"request_range": one} for one in ranges])
        ranges_found = [one["response_range"] for one in answer["responses"]]
        found = [[_found(kv) for kv in one.get("kvs", ())] for one in ranges_found]
        return Read(int(answer["header"]["revision"]), found, [int(one.get("count", 0)) for one in ranges_found])

    def read_all(self, ranges: Sequence[Request]) -> Read:
        """Return the same as ``read``, page by page: for ranges of any size."""
        revision, all_found = 0, list[list[Found]]()
        for one in ranges:
            found, more, asked = list[Found](), True, dict(one)
            while more:
                answer = self._ask("kv/range", asked | {"limit": _PAGE, "revision": revision})
                revision = revision or int(answer["header"]["revision"])
                found += map(_found, answer.get("kvs", ()))
                more = bool(answer.get("more"))
                if more:
                    asked["key"] = encoded(found[-1].key + "\0")
            all_found.append(found)
        return Read(revision, all_found, list(map(len, all_found)))

    def change(self, compare: Sequence[Request], changes: Sequence[Request]) -> bool:
        """Make changes if all comparisons hold; tell whether they did."""
        return bool(self._transaction(compare, changes).get("succeeded"))

    def grant(self, seconds: int) -> int:
        """Return a new lease, which ends after so many seconds."""
        return int(self._ask("lease/grant", {"TTL": seconds, "ID": 0})["ID"])

    def keep_alive(self, lease: int) -> int:
        """Let a lease begin anew; return its seconds, 0 where it has ended."""
        return max(0, int(self._ask("lease/keepalive", {"ID": lease})["result"].get("TTL", 0)))

    def left_s(self, lease: int) -> int:
        """Return the seconds that a lease has left."""
        return max(0, int(self._ask("lease/timetolive", {"ID": lease}).get("TTL", 0)))  # left out where it is 0

    def versions(self) -> dict[str, str]:
        """Return which etcd each endpoint is, of those that answer."""
        found: dict[str, str] = {}
        for endpoint in self._endpoints:
            with suppress(OSError):
                found[endpoint.name] = endpoint.version()
        return found

    def watch(self, keys: Request, since: int) -> Iterator[list[Event]]:
        """Yield what becomes of the keys of a range after a revision, in its order; ends when it is closed.

        A connection of its own, to the endpoint that answered last, waits for as long as nothing happens. Raises
        StateError where the answers end: the endpoint is gone, or cut off from the leader; and where etcd has forgotten
        what was at that revision (compaction).
        """
        if self._address.user and not self._token:
            self._authenticate()
        endpoint = self._endpoints[0].another()
        try:
            lines = endpoint.stream("watch", {"create_request": {**keys, "start_revision": since + 1}}, self._token)
            while line := lines.readline():
                yield self._events(json.loads(line))
            raise StateError("watch the store", "the answers ended", endpoint.name)
        except (OSError, HTTPException, ValueError) as error:
            raise StateError("watch the store", str(error).lower(), endpoint.name) from error
        finally:
            endpoint.close()

    def _events(self, told: dict[str, Any]) -> list[Event]:
        """Return the events of a line. Raises StateError where it is the last one."""
        result = told.get("result", {})
        if forgotten := int(result.get("compact_revision", 0)):
            raise StateError("watch the store", f"what was before revision {forgotten} is forgotten", self._address)
        if "error" in told or result.get("canceled"):
            reason = told.get("error", {}).get("message") or result.get("cancel_reason") or "etcd ended it"
            raise StateError("watch the store", reason, self._address)
        return [_event(each) for each in result.get("events", ())]

    def _transaction(self, compare: Sequence[Request], success: Sequence[Request]) -> dict[str, Any]:
        return self._ask("kv/txn", {"compare": [*compare], "success": [*success]})

    def _ask(self, path: str, question: Request) -> dict[str, Any]:
        if self._address.user and not self._token:
            self._authenticate()
        try:
            return self._ask_each(path, question)
        except Refused as error:
            if not any(words in str(error) for words in _OLD_TOKEN):
                raise self._refusal(error) from error
        self._authenticate()  # tokens end after a while
        try:
            return self._ask_each(path, question)
        except Refused as error:
            raise self._refusal(error) from error

    def _ask_each(self, path: str, question: Request) -> dict[str, Any]:
        """Ask until one answers. Raises Refused, and StateError where nobody could answer."""
        reasons: list[str] = []
        for endpoint in tuple(self._endpoints):
            try:
                answer = endpoint.ask(path, question, self._token)
            except Refused as error:
                if not _is_of_endpoint(error):
                    raise
                reasons.append(f"{endpoint.name}: {error}")
            except OSError as error:
                reasons.append(f"{endpoint.name}: {str(error).lower()}")
            else:
                # Anew, since a watch in another thread may look at it.
                self._endpoints = [endpoint, *(each for each in self._endpoints if each is not endpoint)]
                return answer
        raise StateError("ask the store", f"no endpoint of etcd could answer ({'; '.join(reasons)})", self._address)

    def _authenticate(self) -> None:
        self._token = ""
        path = Path(self._address.password_file or "")
        try:
            login = {"name": self._address.user, "password": path.read_text(encoding="utf-8").rstrip("\n")}
        except (OSError, ValueError) as error:
            raise StateError("read password", str(error), path) from error
        try:
            self._token = str(self._ask_each("auth/authenticate", login)["token"])
        except Refused as error:
            raise self._refusal(error) from error

    def _refusal(self, error: Refused) -> NatctlError:
        return StateError("ask the store", f"etcd refused: {error}", self._address)


def _found(kv: dict[str, Any]) -> Found:
    value, name = b64decode(kv.get("value", "")), b64decode(kv["key"]).decode(errors="replace")
    return Found(name, value, int(kv["mod_revision"]), int(kv.get("lease", 0)))


def _event(told: dict[str, Any]) -> Event:
    found = _found(told["kv"])
    return Event(found.key, None if told.get("type") == "DELETE" else found.value, found.revision)


def _is_of_endpoint(error: Refused) -> bool:
    """Tell whether another endpoint might do better: this one is gone, cut off from the majority, or has no leader."""
    return any(each in str(error) for each in _OF_ENDPOINT)
