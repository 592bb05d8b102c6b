"""What the hosts of a fleet are configured with, and what its upstream does."""

from __future__ import annotations

import json
from collections.abc import Iterable

from nat_rewriter.model.slices import PortRange
from netns_lab import fleet_topology as topology

POOLS = {4: "fleet", 6: "fleet6"}  # one for each IP version
SLICE_SIZE = 512
FIRST_PORT = 8192
MOST_HELD = 2  # slices of a pool by a host
TTL_S, HOLD_DOWN_S = 5, 2  # the shortest term that there is
SERVER_PORTS = {"tcp": 443, "udp": 53}


def pool_ports(slices: int) -> PortRange:
    """Return the ports of a pool that has so many slices; each address has as many as the other."""
    return PortRange(FIRST_PORT, FIRST_PORT + slices // len(topology.SHARED[4]) * SLICE_SIZE - 1)


def slice_ports(first: int) -> PortRange:
    """Return the ports of the slice that begins at a port."""
    return PortRange(first, first + SLICE_SIZE - 1)


def config_text(host: int, endpoints: Iterable[tuple[str, int]], slices: int) -> str:
    """Return the natctl.toml of a host, whose client uses all slices that it can have."""
    url = ",".join(f"{address}:{port}" for address, port in endpoints)
    own = [topology.host_address(host, version) for version in topology.VERSIONS]
    clients = [topology.client_network(host, version) for version in topology.VERSIONS]
    return f"""version = 1

[controller]
coexist = "off"
guard = "drop"

[controller.timeouts]
udp_unreplied = 3
udp_replied = 6
tcp_syn_sent = 3
tcp_close = 2
{"".join(_pool_text(version, slices) for version in topology.VERSIONS)}
[store]
url = "etcd:{url}"
timeout_s = 1

[inbound]
device = "up0"
addresses = {_array(own)}

[[snat]]
name = "client"
source = {_array(clients)}
pools = {_array(POOLS.values())}
spread = "flow"
"""


def _pool_text(version: int, slices: int) -> str:
    return f"""
[[pool]]
name = "{POOLS[version]}"
addresses = {_array(topology.SHARED[version])}
ports = "{pool_ports(slices)}"
slice_size = {SLICE_SIZE}
per_host = {MOST_HELD}
least = 1
high_water = 0.001
low_water = 0.0001
ttl_s = {TTL_S}
hold_down_s = {HOLD_DOWN_S}
"""


def _array(texts: Iterable[str]) -> str:
    return json.dumps([*texts])
