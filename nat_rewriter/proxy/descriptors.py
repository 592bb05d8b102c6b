"""How many descriptors the workers of proxies may have, and whether that is enough for the connections they allow."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Sequence

from nat_rewriter.model.proxies import Proxy

# Of a connection at rest, and of a worker for itself. One that is busy has up to four more, for pipes, and does without
# them where there are none.
_EACH, _OWN = 2, 64


def raise_limit(proxies: Sequence[Proxy]) -> None:
    """Take as many descriptors for this process and its workers as are allowed, or more where that may be (root)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max(hard, _needed(proxies))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, needed))
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def tell_shortage(proxies: Sequence[Proxy], workers: int) -> str:
    """Return a sentence where the workers have too few descriptors for ``max_connections``, else nothing."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = sum(proxy.max_connections for proxy in proxies)
    room = workers * max(0, limit - _OWN) // _EACH
    if allowed <= room:
        return ""
    return (
        f"max_connections allows {allowed} connections, but {workers} workers with {limit} descriptors each carry "
        f"{room}: raise the limit of open files to {_needed(proxies)} (ulimit -Hn, LimitNOFILE=), or lower it"
    )


def _needed(proxies: Sequence[Proxy]) -> int:
    """Return what one worker needs if it gets all connections."""
    return _EACH * sum(proxy.max_connections for proxy in proxies) + _OWN
