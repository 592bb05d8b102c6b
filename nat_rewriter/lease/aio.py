"""Leases for asyncio: names are resolved and connections awaited without blocking the loop.

::

    async with leased(lessor, "ams-1", ("example.com", 443)) as lease:
        reader, writer = await asyncio.open_connection(sock=await connect(lease))

What is asked of the kernel at acquiring and releasing takes some tens of microseconds and is done in the loop.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nat_rewriter.lease.destinations import Destination, first_address, literal_address, unresolved
from nat_rewriter.lease.lease import CONNECT_WITHIN_S, Lease
from nat_rewriter.lease.lessor import Lessor
from nat_rewriter.lease.strategies import AUTO
from nat_rewriter.model.slices import Address

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


async def acquire(
    lessor: Lessor, slice_name: str, to: Destination, *, protocol: str = "tcp", strategy: str = AUTO,
    port: int | None = None,
) -> Lease:  # fmt: skip
    """Return a lease as :meth:`Lessor.acquire` does."""
    version = lessor.find_slice(slice_name, protocol).address.version
    address = await _address_of(to[0], version)
    return lessor.acquire(slice_name, (address, to[1]), protocol=protocol, strategy=strategy, port=port)


@asynccontextmanager
async def leased(
    lessor: Lessor, slice_name: str, to: Destination, *, protocol: str = "tcp", strategy: str = AUTO,
    port: int | None = None,
) -> AsyncIterator[Lease]:  # fmt: skip
    """Hold a lease for the length of the block."""
    with await acquire(lessor, slice_name, to, protocol=protocol, strategy=strategy, port=port) as lease:
        yield lease


async def connect(lease: Lease, timeout_s: float = CONNECT_WITHIN_S) -> socket.socket:
    """Return the connected, non-blocking socket of a lease, as :meth:`Lease.connect` does a blocking one.

    A task that is cancelled meanwhile leaves nothing of the lease.
    """
    sock = lease.begin()
    try:
        await asyncio.wait_for(_writable(sock), timeout_s)
    except TimeoutError:
        return lease.finish(timeout_s)
    except BaseException:
        lease.release()
        raise
    lease.finish().setblocking(False)
    return sock


async def _writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_writer(sock)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def _address_of(host: str | Address, version: int) -> Address:
    if (address := literal_address(host, version)) is not None:
        return address
    try:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(str(host), None, family=_FAMILIES[version], type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise unresolved(host, error) from None
    return first_address(found)
