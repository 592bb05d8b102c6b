"""What pools ask of etcd: reads and changes, each one transaction, and leases; at whichever endpoint answers."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import requests
from etcd3gw.client import Etcd3Client
from etcd3gw.exceptions import Etcd3Exception
from etcd3gw.lease import Lease

from nat_rewriter.errors import NatctlError, StateError
from nat_rewriter.model.pools import StoreAddress

_API = "/v3/"  # etcd 3.4 and newer
T = TypeVar("T")
Request = dict[str, Any]


class Found(NamedTuple):
    """A key that is there."""

    key: str
    value: bytes
    revision: int  # of its last change
    lease: int


class Read(NamedTuple):
    """What several ranges held at one revision of the whole store."""

    revision: int
    found: list[list[Found]]


class EtcdClient:
    """Asks the endpoints in turn, beginning with the one that answered last.

    A change that was sent and not answered may have been made: who repeats it compares with what is there.
    Raises StateError where none answers, where the cluster has no majority, and where it refuses this client.
    """

    def __init__(self, address: StoreAddress) -> None:
        self._address = address
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy of the environment is none of the store's
        if address.ca:
            self._session.verify = address.ca
        if address.certificate and address.key:
            self._session.cert = (address.certificate, address.key)
        scheme = "https" if address.ca or address.certificate else "http"
        self._clients = [
            Etcd3Client(host, port, scheme, timeout=address.timeout_s, api_path=_API, session=self._session)
            for host, port in address.endpoints
        ]

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def read(self, ranges: Sequence[Request]) -> Read:
        """Return what several ranges hold, all at one moment; the answer is that of a majority."""
        answer = self._transaction([], [{"request_range": one} for one in ranges])
        found = [[_found(kv) for kv in one["response_range"].get("kvs", ())] for one in answer["responses"]]
        return Read(int(answer["header"]["revision"]), found)

    def change(self, compare: Sequence[Request], changes: Sequence[Request]) -> bool:
        """Make changes if all comparisons hold; tell whether they did."""
        return bool(self._transaction(compare, changes).get("succeeded"))

    def grant(self, seconds: int) -> int:
        """Return a new lease, which ends after so many seconds."""
        return int(self._ask(lambda client: client.lease(seconds)).id)

    def keep_alive(self, lease: int) -> int:
        """Let a lease begin anew; return its seconds, 0 where it has ended."""
        return max(0, self._ask(lambda client: Lease(lease, client).refresh()))

    def left_s(self, lease: int) -> int:
        """Return the seconds that a lease has left."""

        def question(client: Etcd3Client) -> int:
            answer = client.post(client.get_url("/kv/lease/timetolive"), json={"ID": lease})
            return int(answer.get("TTL", 0))  # the gateway leaves out what is 0

        return max(0, self._ask(question))

    def _transaction(self, compare: Sequence[Request], success: Sequence[Request]) -> dict[str, Any]:
        return dict(self._ask(lambda client: client.transaction({"compare": [*compare], "success": [*success]})))

    def _ask(self, question: Callable[[Etcd3Client], T]) -> T:
        if self._address.user and "Authorization" not in self._session.headers:
            self._authenticate()
        try:
            return self._ask_each(question)
        except Etcd3Exception as error:
            if "invalid auth token" not in _words(error):
                raise self._refusal(error) from error
        self._authenticate()  # tokens end after a while
        try:
            return self._ask_each(question)
        except Etcd3Exception as error:
            raise self._refusal(error) from error

    def _ask_each(self, question: Callable[[Etcd3Client], T]) -> T:
        """Ask until one answers. Raises Etcd3Exception for a refusal, StateError where nobody could answer."""
        reasons: list[str] = []
        for client in tuple(self._clients):
            try:
                answer = question(client)
            except Etcd3Exception as error:
                if not _is_of_endpoint(error):
                    raise
                reasons.append(f"{client.host}:{client.port}: {_words(error)}")
            except (requests.RequestException, OSError) as error:
                reasons.append(f"{client.host}:{client.port}: {error}")
            else:
                self._clients.remove(client)
                self._clients.insert(0, client)
                return answer
        raise StateError("ask the store", f"no endpoint of etcd could answer ({'; '.join(reasons)})", self._address)

    def _authenticate(self) -> None:
        self._session.headers.pop("Authorization", None)
        path = Path(self._address.password_file or "")
        try:
            login = {"name": self._address.user, "password": path.read_text(encoding="utf-8").rstrip("\n")}
        except (OSError, ValueError) as error:
            raise StateError("read password", str(error), path) from error
        try:
            answer = self._ask_each(lambda client: client.post(client.get_url("/auth/authenticate"), json=login))
        except Etcd3Exception as error:
            raise self._refusal(error) from error
        self._session.headers["Authorization"] = answer["token"]

    def _refusal(self, error: Etcd3Exception) -> NatctlError:
        return StateError("ask the store", f"etcd refused: {_words(error)}", self._address)


def key(name: str) -> Request:
    """Return the range that is one key."""
    return {"key": _encoded(name)}


def under(prefix: str) -> Request:
    """Return the range of all keys that begin so."""
    last = prefix.encode()
    return {"key": _encoded(prefix), "range_end": b64encode(last[:-1] + bytes([last[-1] + 1])).decode()}


def newest(prefix: str, most: int) -> Request:
    """Return the range of the keys that begin so and were made last."""
    return under(prefix) | {"limit": most, "sort_order": "DESCEND", "sort_target": "CREATE"}


def put(name: str, value: str, lease: int = 0) -> Request:
    """Return the change that sets a key, until its lease ends."""
    return {"request_put": {"key": _encoded(name), "value": _encoded(value), "lease": lease}}


def delete(name: str) -> Request:
    """Return the change that deletes a key."""
    return {"request_delete_range": {"key": _encoded(name)}}


def at_revision(name: str, revision: int) -> Request:
    """Return the comparison that holds while a key is as it was at its last change; 0: while it is not there."""
    return {"key": _encoded(name), "target": "MOD", "result": "EQUAL", "mod_revision": revision}


def untouched_since(prefix: str, revision: int) -> Request:
    """Return the comparison that holds while no key that begins so has come or changed since a revision."""
    return {**under(prefix), "target": "MOD", "result": "LESS", "mod_revision": revision + 1}


def _found(kv: dict[str, str]) -> Found:
    value, name = b64decode(kv.get("value", "")), b64decode(kv["key"]).decode(errors="replace")
    return Found(name, value, int(kv["mod_revision"]), int(kv.get("lease", 0)))


def _encoded(text: str) -> str:
    return b64encode(text.encode()).decode()


def _is_of_endpoint(error: Etcd3Exception) -> bool:
    """Tell whether another endpoint might do better: this one is gone, cut off from the majority, or has no leader."""
    words = _words(error)
    return any(each in words for each in ("connection", "timed out", "timeout", "no leader", "unavailable", "stopped"))


def _words(error: Etcd3Exception) -> str:
    return str(error.detail_text or error).strip().lower() or type(error).__name__
