"""What the hosts of a fleet are configured with, and what its upstream does."""

from __future__ import annotations

from collections.abc import Iterable

from nat_rewriter.model.slices import PortRange
from netns_lab import fleet_topology as topology
from netns_lab.topology import SERVER_LINK

POOL = "fleet"
SLICE_SIZE = 512
FIRST_PORT = 8192
TTL_S, HOLD_DOWN_S = 5, 2  # the shortest term that there is
SERVER_PORTS = {"tcp": ("203.0.113.1", 443), "udp": ("203.0.113.1", 53)}


def pool_ports(slices: int) -> PortRange:
    """Return the ports of a pool that has so many slices; each address has as many as the other."""
    return PortRange(FIRST_PORT, FIRST_PORT + slices // len(topology.SHARED) * SLICE_SIZE - 1)


def config_text(host: int, endpoints: Iterable[tuple[str, int]], slices: int, hold_down_s: int = HOLD_DOWN_S) -> str:
    """Return the natctl.toml of a host, which shares one slice of the pool with the client behind it."""
    addresses = ", ".join(f'"{address}"' for address in topology.SHARED)
    url = ",".join(f"{address}:{port}" for address, port in endpoints)
    return f"""version = 1

[controller]
coexist = "off"
guard = "drop"

[controller.timeouts]
udp_unreplied = 3
udp_replied = 6
tcp_syn_sent = 3
tcp_close = 2

[[pool]]
name = "{POOL}"
addresses = [{addresses}]
ports = "{pool_ports(slices)}"
slice_size = {SLICE_SIZE}
per_host = 1
ttl_s = {TTL_S}
hold_down_s = {hold_down_s}

[store]
url = "etcd:{url}"
timeout_s = 1

[[snat]]
name = "client"
source = ["10.0.{host}.0/24"]
pools = ["{POOL}"]
"""


def upstream_ruleset() -> str:
    """Return the upstream's nft table: who is cut off from whom, and to which host a packet from outside is brought."""
    hosts = ", ".join(f"{topology.host_mac(host)} : {host}" for host in topology.HOSTS)
    return f"""
table inet upstream {{
    # source . destination: no packet passes.
    set cut {{
        type ipv4_addr . ipv4_addr
    }}

    map sender {{
        type ether_addr : mark
        elements = {{ {hosts} }}
    }}

    chain prerouting {{
        type filter hook prerouting priority -150;
        iifname {topology.FLEET_LINK} ip saddr {topology.SHARED_NETWORK} ct mark set ether saddr map @sender
        iifname {SERVER_LINK} ip daddr {topology.SHARED_NETWORK} meta mark set ct mark
    }}

    chain forward {{
        type filter hook forward priority 0; policy accept;
        ip saddr . ip daddr @cut drop
        iifname {topology.FLEET_LINK} ip saddr 10.0.0.0/16 drop
    }}
}}
"""
