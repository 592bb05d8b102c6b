"""One endpoint of etcd: its JSON gateway (/v3: etcd 3.4 and newer) over an HTTP connection that stays open."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any

from nat_rewriter.errors import StateError
from nat_rewriter.model.pools import StoreAddress

_OK = 200
_KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3))
_REQUIRE_LEADER = {"Grpc-Metadata-hasleader": "true"}  # etcd: a stream ends when its member has lost the leader


class Refused(Exception):
    """An endpoint answered that it would not, or could not; the text is its own, in lower case."""


class Endpoint:
    """Asks one question at a time, whatever thread it comes from."""

    def __init__(self, host: str, port: int, timeout_s: float | None, tls: ssl.SSLContext | None) -> None:
        self.name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._place, self._timeout_s, self._tls = (host, port), timeout_s, tls
        self._connection = (
            HTTPSConnection(host, port, timeout=timeout_s, context=tls)
            if tls
            else HTTPConnection(host, port, timeout=timeout_s)
        )
        self._lock = threading.Lock()

    def another(self) -> Endpoint:
        """Return the same endpoint, over a connection of its own."""
        return Endpoint(*self._place, self._timeout_s, self._tls)

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        self._connection.close()

    def ask(self, path: str, question: dict[str, Any], token: str = "") -> dict[str, Any]:
        """Return the answer. Raises Refused; OSError where none came: what was asked for may have been done."""
        content = json.dumps(question).encode()
        with self._lock:
            try:
                return self._answer(path, content, token)
            except (OSError, HTTPException) as error:
                self._connection.close()
                raise error if isinstance(error, OSError) else ConnectionError(f"no HTTP: {error!r}") from error

    def stream(self, path: str, question: dict[str, Any], token: str = "") -> HTTPResponse:
        """Return the answer to a question that is answered line by line, for as long as the connection is open.

        It ends where the other side is without a leader, or gone, for which TCP looks while nothing is said (tcp(7)).
        """
        self._connection.connect()
        assert self._connection.sock
        for option, value in _KEEP_ALIVE:
            self._connection.sock.setsockopt(socket.IPPROTO_TCP, option, value)
        self._connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        response = self._send(path, json.dumps(question).encode(), token, _REQUIRE_LEADER)
        self._connection.sock.settimeout(None)
        return response

    def version(self) -> str:
        """Return which etcd answers here, over a connection of its own. Raises OSError where none does."""
        asking = self.another()._connection
        try:
            asking.request("GET", "/version")
            return str(json.loads(asking.getresponse().read())["etcdserver"])
        except (HTTPException, ValueError, LookupError, TypeError) as error:
            raise ConnectionError(f"no etcd: {error!r}") from error
        finally:
            asking.close()

    def _answer(self, path: str, content: bytes, token: str) -> dict[str, Any]:
        kept_open = self._connection.sock is not None
        try:
            response = self._send(path, content, token)
        except (ConnectionError, HTTPException):
            if not kept_open:
                raise
            self._connection.close()  # it had been closed from over there meanwhile
            response = self._send(path, content, token)
        answer = response.read()
        if response.status != _OK:
            raise Refused(_words(answer) or f"http status {response.status}")
        return dict(json.loads(answer))

    def _send(self, path: str, content: bytes, token: str, headers: Mapping[str, str] = {}) -> HTTPResponse:
        authorization = {"Authorization": token} if token else {}
        self._connection.request("POST", f"/v3/{path}", content, {**headers, **authorization})
        return self._connection.getresponse()


def tls_of(address: StoreAddress) -> ssl.SSLContext | None:
    """Return how the store is spoken to; None: in the clear. Raises StateError for a file that is no certificate."""
    if not (address.ca or address.certificate):
        return None
    try:
        context = ssl.create_default_context(cafile=address.ca)
    except (OSError, ssl.SSLError) as error:
        raise StateError("read certificate", str(error).lower(), address.ca) from error
    if address.certificate:
        try:
            context.load_cert_chain(address.certificate, address.key)
        except (OSError, ssl.SSLError) as error:
            raise StateError("read certificate and key", str(error).lower(), address.certificate) from error
    return context


def _words(answer: bytes) -> str:
    """Return what a refusal says: JSON of the gateway, or plain text of the server below it."""
    try:
        told = json.loads(answer)
        text = str(told.get("message") or told.get("error") or told)
    except (ValueError, AttributeError):
        text = answer.decode(errors="replace")
    return text.strip().lower()[:300]
