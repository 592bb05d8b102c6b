"""What a running proxy knows of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nat_rewriter.model.proxies import Proxy
from nat_rewriter.proxy.relay import Counts


@dataclass(frozen=True, slots=True)
class WorkerChange:
    """A worker that died, or was started in the place of one."""

    worker: int
    pid: int
    died: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ProxyStatus:
    """All proxies with what was counted for each, since the start; and the workers."""

    proxies: tuple[Proxy, ...]
    counts: Mapping[str, Counts]
    workers: int
    draining: int
    restarts: int
    reloads: int

    @property
    def active(self) -> int:
        """Connections there are now."""
        return sum(counts.active for counts in self.counts.values())
