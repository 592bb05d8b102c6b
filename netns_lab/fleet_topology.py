"""Who is connected to whom in a fleet, with which addresses and routes; N is 1 to 5, M is 1 to 3::

    client                   host N                        upstream                         server
    10.0.N.2 ── ethN/fish0 ── 10.0.N.1
                              198.51.100.20 … .22 (lo)
                              100.64.0.1N ── up0/hostN ──┐
                                                         fleet0 100.64.0.1
                                                           203.0.113.254 ── srv0/eth0 ── 203.0.113.1 … .9
    etcd M  100.65.M.2 ── eth0/storeM ────────────────────── 100.65.M.1

Every host may send from the shared addresses, from the ports that it holds. The upstream brings what comes back to any
host, one packet here, the next there, without a look at the ports.
"""

from __future__ import annotations

from collections.abc import Mapping

from netns_lab.namespaces import FLEET_HOSTS
from netns_lab.topology import HOST_SYSCTLS, ROUTER_SYSCTLS, SERVER_LINK, wiring

HOSTS, NODES = (1, 2, 3, 4, 5), (1, 2, 3)
SHARED = ("198.51.100.20", "198.51.100.21", "198.51.100.22")
SHARED_NETWORK = "198.51.100.0/24"
FLEET_LINK = "fleet0"
NAMES = ("client", "upstream", "server", *FLEET_HOSTS)
_FIRST_INDEX = 20


def client_address(host: int) -> str:
    """Return the address of the client behind a host."""
    return f"10.0.{host}.2"


def host_address(host: int) -> str:
    """Return the address that a host has on the fleet's own network."""
    return f"100.64.0.1{host}"


def host_mac(host: int) -> str:
    """Return the hardware address by which the upstream knows a host."""
    return f"02:00:64:40:00:1{host}"


def node_address(node: int) -> str:
    """Return the address of an etcd node."""
    return f"100.65.{node}.2"


def build(names: Mapping[str, str]) -> None:
    """Wire the namespaces of a fleet. ``names``: host -> namespace."""
    with wiring(names["server"]):
        pass  # the sysctls have to be there before the cables arrive
    with wiring(names["client"]) as client:
        client.interface("lo", [])
    with wiring(names["upstream"], HOST_SYSCTLS | ROUTER_SYSCTLS) as upstream:
        upstream.interface("lo", [])
        upstream.bridge(FLEET_LINK)
        upstream.interface(FLEET_LINK, ["100.64.0.1/24"])
        upstream.cable(SERVER_LINK, "eth0", names["server"])
        upstream.interface(SERVER_LINK, ["203.0.113.254/24"])
    for host in HOSTS:
        _wire_host(names, host)
    for node in NODES:
        _wire_node(names, node)
    with wiring(names["server"], {}) as server:
        server.interface("lo", [])
        server.interface("eth0", [f"203.0.113.{number}/24" for number in range(1, 10)])
        server.route("default", "203.0.113.254")


def _wire_host(names: Mapping[str, str], number: int) -> None:
    port, index = f"host{number}", _FIRST_INDEX + 2 * number
    with wiring(names[port], HOST_SYSCTLS | ROUTER_SYSCTLS) as host:
        host.interface("lo", SHARED)
        host.cable("fish0", f"eth{number}", names["client"], index)
        host.cable("up0", port, names["upstream"], index + 1, host_mac(number))
        host.interface("fish0", [f"10.0.{number}.1/24"])
        host.interface("up0", [f"{host_address(number)}/24"])
        host.route("default", "100.64.0.1")
    with wiring(names["upstream"], {}) as upstream:
        upstream.interface(port, [])
        upstream.join(port, FLEET_LINK)
        upstream.route("default", host_address(number), table=number)
        upstream.rule(number, fwmark=number)
    with wiring(names["client"], {}) as client:
        client.interface(f"eth{number}", [f"{client_address(number)}/24"])
        client.route("default", f"10.0.{number}.1", table=number)
        client.rule(number, src=f"10.0.{number}.0/24")


def _wire_node(names: Mapping[str, str], number: int) -> None:
    with wiring(names[f"etcd{number}"]) as node:
        node.interface("lo", [])
        node.cable("eth0", f"store{number}", names["upstream"], _FIRST_INDEX + 1)
        node.interface("eth0", [f"{node_address(number)}/24"])
        node.route("default", f"100.65.{number}.1")
    with wiring(names["upstream"], {}) as upstream:
        upstream.interface(f"store{number}", [f"100.65.{number}.1/24"])
