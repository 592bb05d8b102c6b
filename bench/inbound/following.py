"""How long a host takes to learn who holds what of a real etcd, and to hand packets over after a slice has moved."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from bench.inbound.place import BLOCKS_AN_ADDRESS, PORTS, SLICE_SIZE
from nat_rewriter.kernel.inbound import Handover
from nat_rewriter.model.inbound import Inbound, Peer
from nat_rewriter.model.pools import Block, Pool, StoreAddress
from nat_rewriter.pool import etcd_requests as etcd
from nat_rewriter.pool import open_store
from nat_rewriter.pool.etcd_client import EtcdClient
from nat_rewriter.pool.etcd_records import nothing
from nat_rewriter.pool.hosts import peer_text
from netns_lab.etcd_cluster import etcd_server
from netns_lab.segment import cable, hosts_of_their_own

EACH = 100  # slices of a host
TIMES = 15
PATIENCE_S = 60


class Following(NamedTuple):
    """Seconds to read all and to fill the kernel's tables; then milliseconds from a change in etcd to the kernel's."""

    read_s: float
    filled_s: float
    change_ms: float


def following(count: int) -> Following:
    """Measure with so many slices."""
    first = ip_address("198.51.100.1")
    addresses = tuple(first + number for number in range(-(-count // BLOCKS_AN_ADDRESS)))
    pool = Pool("shared", addresses, PORTS, SLICE_SIZE)
    blocks = [block for _, block in zip(range(count), pool.blocks(), strict=False)]
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with ExitStack() as stack:
        port = stack.enter_context(etcd_server(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        address = StoreAddress("etcd", endpoints=(("127.0.0.1", port),))
        host, other = hosts_of_their_own(stack, "host", "other")
        cable(host, "seg0", other, "far0")
        with host.enter():
            handover = stack.enter_context(Handover("natctl", "h0"))
        store = stack.enter_context(open_store(address))
        store.define(pool)
        client = EtcdClient(address)
        stack.callback(client.close)
        for number in range(0, count, EACH):
            _hold(client, number // EACH, blocks[number : number + EACH])
        began = time.monotonic()
        watch = stack.enter_context(store.hosts.watch())
        holders = watch.wait(PATIENCE_S)
        read = time.monotonic()
        assert holders is not None
        handover.raise_up([pool], Inbound("seg0", (), ("seg0",)), holders)
        filled = time.monotonic()
        changes = list[float]()
        for turn in range(TIMES):
            _hold(client, 1, blocks[EACH + turn + 1 : 2 * EACH])
            changed = time.monotonic()
            holders = watch.wait(PATIENCE_S)
            assert holders is not None
            handover.update(holders, {}, 1)
            changes.append(time.monotonic() - changed)
        return Following(read - began, filled - read, statistics.median(changes) * 1000)


def _hold(client: EtcdClient, number: int, blocks: list[Block]) -> None:
    """Let a host hold blocks, as its record says."""
    name = f"h{number}"
    peer = Peer(name, (ip_address("192.0.2.0") + number,), f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}")
    record = nothing(name).with_more(blocks).text
    client.change(
        [], [etcd.put(f"natctl/host/shared/{name}", record), etcd.put(f"natctl/here/{name}", peer_text(peer))]
    )
