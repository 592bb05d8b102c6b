"""What the hosts of a fleet are configured with, and what its upstream does."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from nat_rewriter.model.slices import PortRange
from netns_lab import fleet_topology as topology
from netns_lab.topology import SERVER_LINK

POOL = "fleet"
SLICE_SIZE = 512
FIRST_PORT = 8192
_NOWHERE = 99  # a mark that no table of routes is for
TTL_S, HOLD_DOWN_S = 5, 2  # the shortest term that there is
SERVER_PORTS = {"tcp": ("203.0.113.1", 443), "udp": ("203.0.113.1", 53)}


def pool_ports(slices: int) -> PortRange:
    """Return the ports of a pool that has so many slices; each address has as many as the other."""
    return PortRange(FIRST_PORT, FIRST_PORT + slices // len(topology.SHARED) * SLICE_SIZE - 1)


def config_text(host: int, endpoints: Iterable[tuple[str, int]], slices: int) -> str:
    """Return the natctl.toml of a host, whose client uses all slices that it can have: two, and one at least."""
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
per_host = 2
least = 1
high_water = 0.001
low_water = 0.0001
ttl_s = {TTL_S}
hold_down_s = {HOLD_DOWN_S}

[store]
url = "etcd:{url}"
timeout_s = 1

[inbound]
device = "up0"
addresses = ["{topology.host_address(host)}"]

[[snat]]
name = "client"
source = ["10.0.{host}.0/24"]
pools = ["{POOL}"]
spread = "flow"
"""


def upstream_ruleset() -> str:
    """Return the upstream's nft table: who is cut off from whom, and to which host a packet from outside is brought.

    That is drawn for each packet. A host that is withdrawn, as a router does with one that does not answer or that says
    so itself, has what was drawn for it brought to another.
    """
    return f"""
table inet upstream {{
    # source . destination: no packet passes.
    set cut {{
        type ipv4_addr . ipv4_addr
    }}

    # The host that was drawn : the host that gets it.
    map brought {{
        type mark : mark
    }}

    chain prerouting {{
        type filter hook prerouting priority -150;
        iifname {SERVER_LINK} ip daddr {topology.SHARED_NETWORK} jump spray
    }}

    chain spray {{
        meta mark set numgen random mod {len(topology.HOSTS)} offset 1
        meta mark set meta mark map @brought
    }}

    chain forward {{
        type filter hook forward priority 0; policy accept;
        ip saddr . ip daddr @cut drop
        iifname {topology.FLEET_LINK} ip saddr 10.0.0.0/16 drop
    }}
}}
"""


def spraying(hosts: Collection[int]) -> str:
    """Return the nft commands by which packets from outside are brought to these hosts; to none: nowhere."""
    chosen = sorted(hosts) or [_NOWHERE]
    brought = (host if host in hosts else chosen[host % len(chosen)] for host in topology.HOSTS)
    elements = ", ".join(f"{drawn} : {host}" for drawn, host in zip(topology.HOSTS, brought, strict=True))
    return f"flush map inet upstream brought\nadd element inet upstream brought {{ {elements} }}"
