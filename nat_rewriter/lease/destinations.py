"""Where a lease leads: names and texts turned into one address and port."""

from __future__ import annotations

import functools
import socket
from ipaddress import ip_address
from typing import Any

from nat_rewriter.errors import LeaseError, UsageError
from nat_rewriter.model.slices import Address

Destination = tuple[str | Address, int]
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def parse_destination(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``, an IPv6 address in brackets. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    number = int(port) if port.isascii() and port.isdecimal() and len(port) < 6 else 0
    if not colon or not host or not 0 < number < 65536 or (":" in host and not bracketed):
        raise UsageError("read destination", "expected HOST:PORT, an IPv6 address in brackets", text)
    return host[1:-1] if bracketed else host, number


@functools.lru_cache(maxsize=1024)
def literal_address(host: str | Address, version: int) -> Address | None:
    """Return an address that is given as one, None for a name. Raises UsageError for one of the other IP version."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    if address.version != version:
        raise UsageError("read destination", f"expected an IPv{version} address as the slice has one", host)
    return address


def resolve(host: str | Address, version: int) -> Address:
    """Return the first address of that IP version. Raises LeaseError where there is none; may take seconds."""
    if (address := literal_address(host, version)) is not None:
        return address
    try:
        return first_address(socket.getaddrinfo(str(host), None, _FAMILIES[version], socket.SOCK_STREAM))
    except (OSError, UnicodeError) as error:
        raise unresolved(host, error) from None


def first_address(found: list[Any]) -> Address:
    """Return the first address of what getaddrinfo() found."""
    return ip_address(str(found[0][4][0]))


def unresolved(host: object, error: Exception) -> LeaseError:
    """Return the error that a name without an address is."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return LeaseError("resolve destination", reason.lower(), host)
