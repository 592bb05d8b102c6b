"""Where packets for shared addresses belong, as JSON for routers and load balancers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from nat_rewriter.model.inbound import Peer
from nat_rewriter.model.pools import Holding, Pool
from nat_rewriter.report.json_lines import time_text


def mapping_object(
    holdings: Mapping[Pool, Sequence[Holding]], peers: Mapping[str, Peer], now: datetime
) -> dict[str, Any]:
    """Return who is to get packets for which ports.

    ``port & mask == first`` tells a port of a slice; ``to`` is where its host is reached, absent where that host takes
    no packets from others; without a word from the host the slice is no longer its own at ``until``.
    """
    return {
        "time": time_text(now),
        "hosts": [_host_object(peer) for _, peer in sorted(peers.items())],
        "slices": [
            _slice_object(pool, each, peers.get(each.host), now)
            for pool, some in holdings.items()
            for each in some
            if not each.resting
        ],
    }


def _host_object(peer: Peer) -> dict[str, Any]:
    return {"host": peer.host, "addresses": [str(address) for address in peer.addresses], "link": peer.link}


def _slice_object(pool: Pool, held: Holding, peer: Peer | None, now: datetime) -> dict[str, Any]:
    to = peer.address(held.block.address.version) if peer else None
    return {
        "pool": pool.name,
        "address": str(held.block.address),
        "ports": str(held.block.ports),
        "first": held.block.first,
        "mask": 0x10000 - held.block.size,
        "protocols": [protocol.value for protocol in pool.protocols],
        "host": held.host,
        **({"to": str(to)} if to else {}),
        "until": time_text(now + timedelta(seconds=held.left_s)),
    }
