"""The leases of etcd on which pools are kept: two for each host, and those of what rests or is in quarantine."""

from __future__ import annotations

import time

from nat_rewriter.model.pools import Pool
from nat_rewriter.pool.etcd_client import EtcdClient
from nat_rewriter.pool.etcd_records import Record, nothing

_MOMENT = 20  # this part of a term
_REST_SHARED = 20  # one lease is for all that a host gives back within this part of the rest


class EtcdLeases:
    """Grants leases and keeps them alive; knows when those that it saw last began anew."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client
        self._rests: dict[int, tuple[int, float]] = {}
        self._kept: dict[int, tuple[float, int]] = {}  # when a short lease began anew, and its seconds

    def renewed(self, record: Record, pool: Pool) -> Record:
        """Return the record with leases that are fresh; new ones, and nothing held, where it has none any more."""
        if term_s := self._fresh_s(record) or self.keep_alive(record):
            return record._replace(term_s=term_s)
        asked = _now()
        long, short = self._client.grant(pool.ttl_s + pool.hold_down_s), self._client.grant(pool.ttl_s)
        self._kept[short] = (asked, pool.ttl_s)
        return nothing(record.host)._replace(short=short, long=long, term_s=pool.ttl_s)

    def keep_alive(self, record: Record) -> int:
        """Renew both leases of a host; return the seconds of the short one, 0 where they have ended.

        The long one first: it must not end before the short one and the hold-down after that. The seconds are those it
        was granted for, which other terms of the pool do not change.
        """
        asked = _now()
        if not (record.revision and self._client.keep_alive(record.long)):
            return 0
        term_s = self._client.keep_alive(record.short)
        self._kept[record.short] = (asked, term_s)
        return term_s

    def granted_s(self, record: Record) -> int:
        """Return the seconds for which the short lease of a renewed record was granted."""
        return self._kept[record.short][1]

    def rest(self, seconds: int) -> int:
        """Return the lease of what is given back now, 0 where nothing rests. One is for several, to spare etcd."""
        if not seconds:
            return 0
        lease, until = self._rests.get(seconds, (0, 0.0))
        now = _now()
        if now >= until:
            shared_s = seconds // _REST_SHARED
            lease = self._client.grant(seconds + shared_s)
            self._rests[seconds] = (lease, now + shared_s)
        return lease

    def _fresh_s(self, record: Record) -> float:
        """Return what is left of leases that were renewed here a moment ago, 0 where that was earlier."""
        began, seconds = self._kept.get(record.short if record.revision else 0, (0.0, 0))
        since_s = _now() - began
        return seconds - since_s if since_s * _MOMENT < seconds else 0.0


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
