"""The sockets that proxies listen on: one for each worker, between which the kernel divides what comes."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from contextlib import ExitStack

from nat_rewriter.errors import KernelError, NatctlError, PermissionNeeded
from nat_rewriter.model.proxies import Endpoint
from nat_rewriter.model.slices import Address

BACKLOG = 65535  # the kernel takes net.core.somaxconn where that is less
_IPV6_TRANSPARENT = 75  # include/uapi/linux/in6.h


def open_listeners(endpoint: Endpoint, count: int, *, transparent: bool) -> list[socket.socket]:
    """Return sockets that listen on one endpoint together; ``transparent``: for any destination (TPROXY)."""
    _refuse_taken(endpoint)
    with ExitStack() as opened:
        sockets = [opened.enter_context(_listener(endpoint, transparent=transparent)) for _ in range(count)]
        opened.pop_all()
    return sockets


def _refuse_taken(endpoint: Endpoint) -> None:
    """Raise when another process listens there: with SO_REUSEPORT the kernel would divide connections with it."""
    with _socket(endpoint) as trial:
        _bind(trial, endpoint)
        _listen(trial, endpoint)


def _listener(endpoint: Endpoint, *, transparent: bool) -> socket.socket:
    listener = _socket(endpoint)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
    try:
        if transparent:
            _make_transparent(listener, endpoint)
        _bind(listener, endpoint)
        _listen(listener, endpoint)
    except BaseException:
        listener.close()
        raise
    return listener


def _socket(endpoint: Endpoint) -> socket.socket:
    family = socket.AF_INET6 if endpoint.address.version == 6 else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    opened.setblocking(False)
    return opened


def _make_transparent(listener: socket.socket, endpoint: Endpoint) -> None:
    level, option = (
        (socket.IPPROTO_IPV6, _IPV6_TRANSPARENT)
        if endpoint.address.version == 6
        else (socket.IPPROTO_IP, socket.IP_TRANSPARENT)
    )
    try:
        listener.setsockopt(level, option, 1)
    except PermissionError:
        raise PermissionNeeded(f"listen on {endpoint} for other destinations", "CAP_NET_ADMIN") from None


def _bind(listener: socket.socket, endpoint: Endpoint) -> None:
    try:
        listener.bind((str(endpoint.address), endpoint.port))
    except PermissionError:
        raise PermissionNeeded(f"listen on {endpoint}", "CAP_NET_BIND_SERVICE") from None
    except OSError as error:
        raise _refused(endpoint, error) from None


def _listen(listener: socket.socket, endpoint: Endpoint) -> None:
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        raise _refused(endpoint, error) from None


def _refused(endpoint: Endpoint, error: OSError) -> NatctlError:
    if error.errno == errno.EADDRINUSE:
        return NatctlError("listen", "another process listens there, `ss -ltnp` says which", endpoint)
    if error.errno == errno.EADDRNOTAVAIL:
        return NatctlError("listen", "is not an address of this host", endpoint)
    return KernelError("listen", error.errno or 0, f"{error.strerror}: {str(endpoint)!r}")


def require_addresses(addresses: Iterable[Address]) -> None:
    """Raise NatctlError unless sockets of this host can have each of the addresses."""
    for address in sorted(set(addresses), key=lambda each: (each.version, each)):
        with _socket(Endpoint(address, 0)) as trial:
            try:
                trial.bind((str(address), 0))
            except OSError as error:
                raise _missing(address, error) from None


def _missing(address: Address, error: OSError) -> NatctlError:
    if error.errno != errno.EADDRNOTAVAIL:
        return KernelError("use slice", error.errno or 0, f"{os.strerror(error.errno or 0)}: {str(address)!r}")
    command = f"ip address add {address} dev lo"
    return NatctlError("use slice", f"its address is not one of this host, `{command}` makes it one", address)
