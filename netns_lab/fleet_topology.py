"""Who is connected to whom in a fleet, with which addresses and routes; N is 1 to 5, M is 1 to 3::

    client                   host N                        upstream                         server
    10.0.N.2 ── ethN/fish0 ── 10.0.N.1
                              198.51.100.20 … .22 (lo)
                              100.64.0.1N ── up0/hostN ──┐
                                                         fleet0 100.64.0.1
                                                           203.0.113.254 ── srv0/eth0 ── 203.0.113.1 … .9
    etcd M  100.65.M.2 ── eth0/storeM ────────────────────── 100.65.M.1

IPv6 is wired alike: 2001:db8:10:N::2 behind 2001:db8:10:N::1, 2001:db8:198::20 … 22 on lo, 2001:db8:64::1N, server
2001:db8:203::1. etcd is spoken to by IPv4.

Every host may send from the shared addresses, from the ports that it holds. The upstream brings what comes back to any
host, one packet here, the next there, without a look at the ports. Packets that a client marks with N go by host N,
whatever their source; every host knows the way back to every client.
"""

from __future__ import annotations

from collections.abc import Mapping
from socket import AF_INET, AF_INET6

from netns_lab.namespaces import FLEET_HOSTS
from netns_lab.topology import HOST_SYSCTLS, ROUTER_SYSCTLS, SERVER_LINK, Wiring, wiring

HOSTS, NODES, VERSIONS = (1, 2, 3, 4, 5), (1, 2, 3), (4, 6)
SHARED = {
    4: ("198.51.100.20", "198.51.100.21", "198.51.100.22"),
    6: ("2001:db8:198::20", "2001:db8:198::21", "2001:db8:198::22"),
}
SHARED_NETWORKS = {4: "198.51.100.0/24", 6: "2001:db8:198::/64"}
SERVER_NETWORKS = {4: "203.0.113.0/24", 6: "2001:db8:203::/64"}
CLIENT_NETWORKS = {4: "10.0.0.0/16", 6: "2001:db8:10::/48"}
SERVERS = {4: "203.0.113.1", 6: "2001:db8:203::1"}
FLEET_LINK = "fleet0"
NAMES = ("client", "upstream", "server", *FLEET_HOSTS)
_UPSTREAM = {4: "100.64.0.1", 6: "2001:db8:64::1"}
_FAMILIES = {4: AF_INET, 6: AF_INET6}
_FIRST_INDEX = 20
_MARKED, _BY_SOURCE = 900, 1000  # priorities of rules; the first of them count first


def client_address(host: int, version: int = 4) -> str:
    """Return the address of the client behind a host."""
    return f"10.0.{host}.2" if version == 4 else f"2001:db8:10:{host}::2"


def client_network(host: int, version: int = 4) -> str:
    """Return the network behind a host."""
    return f"10.0.{host}.0/24" if version == 4 else f"2001:db8:10:{host}::/64"


def host_address(host: int, version: int = 4) -> str:
    """Return the address that a host has on the fleet's own network."""
    return f"100.64.0.1{host}" if version == 4 else f"2001:db8:64::1{host}"


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
        upstream.interface(FLEET_LINK, [f"{_UPSTREAM[4]}/24", f"{_UPSTREAM[6]}/64"])
        upstream.cable(SERVER_LINK, "eth0", names["server"])
        upstream.interface(SERVER_LINK, ["203.0.113.254/24", "2001:db8:203::fe/64"])
    for host in HOSTS:
        _wire_host(names, host)
    for node in NODES:
        _wire_node(names, node)
    with wiring(names["server"], {}) as server:
        server.interface("lo", [])
        server.interface("eth0", [f"203.0.113.{number}/24" for number in range(1, 10)] + [f"{SERVERS[6]}/64"])
        server.route("default", "203.0.113.254")
        server.route("default", "2001:db8:203::fe")


def _wire_host(names: Mapping[str, str], number: int) -> None:
    port, index = f"host{number}", _FIRST_INDEX + 2 * number
    with wiring(names[port], HOST_SYSCTLS | ROUTER_SYSCTLS) as host:
        host.interface("lo", [address for version in VERSIONS for address in SHARED[version]])
        host.cable("fish0", f"eth{number}", names["client"], index)
        host.cable("up0", port, names["upstream"], index + 1, host_mac(number))
        host.interface("fish0", [f"10.0.{number}.1/24", f"2001:db8:10:{number}::1/64"])
        host.interface("up0", [f"{host_address(number)}/24", f"{host_address(number, 6)}/64"])
    with wiring(names["upstream"], {}) as upstream:
        upstream.interface(port, [])
        upstream.join(port, FLEET_LINK)
        for version in VERSIONS:
            upstream.route("default", host_address(number, version), table=number)
            upstream.rule(number, family=_FAMILIES[version], fwmark=number)
    with wiring(names["client"], {}) as client:
        client.interface(f"eth{number}", [f"10.0.{number}.2/24", f"2001:db8:10:{number}::2/64"])
        for version in VERSIONS:
            _send_by_host(client, number, version)
    with wiring(names[port], {}) as host:
        for version in VERSIONS:
            host.route("default", _UPSTREAM[version])
            for other in set(HOSTS) - {number}:
                host.route(client_network(other, version), client_address(number, version))


def _send_by_host(client: Wiring, number: int, version: int) -> None:
    """Send by a host what is from its network, and what is marked with its number."""
    gateway = f"10.0.{number}.1" if version == 4 else f"2001:db8:10:{number}::1"
    client.route("default", gateway, table=number)
    client.rule(number, _BY_SOURCE, _FAMILIES[version], src=client_network(number, version))
    client.rule(number, _MARKED, _FAMILIES[version], fwmark=number)


def _wire_node(names: Mapping[str, str], number: int) -> None:
    with wiring(names[f"etcd{number}"]) as node:
        node.interface("lo", [])
        node.cable("eth0", f"store{number}", names["upstream"], _FIRST_INDEX + 1)
        node.interface("eth0", [f"{node_address(number)}/24"])
        node.route("default", f"100.65.{number}.1")
    with wiring(names["upstream"], {}) as upstream:
        upstream.interface(f"store{number}", [f"100.65.{number}.1/24"])
