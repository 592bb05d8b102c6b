"""The router before a fleet: to which hosts it brings what comes for the shared addresses, and who reaches whom."""

from __future__ import annotations

from collections.abc import Iterable

from netns_lab import fleet_topology as topology
from netns_lab.host import Host
from netns_lab.topology import SERVER_LINK

_NOWHERE = 99  # a mark that no table of routes is for


class FleetUpstream:
    """Draws a host for each packet that comes for the fleet; at first it brings packets to none."""

    def __init__(self, router: Host) -> None:
        self._router = router
        self._brought_to = set[int]()
        router.nft(_ruleset())
        self._spray()

    def bring_to(self, hosts: Iterable[int]) -> None:
        """Bring packets to these hosts as well."""
        self._brought_to |= set(hosts)
        self._spray()

    def withdraw(self, host: int) -> None:
        """Bring none to a host any more."""
        self._brought_to.discard(host)
        self._spray()

    def cut(self, one: str, others: Iterable[str]) -> None:
        """Let no packet pass between an address and others."""
        self._change("add", one, others)

    def mend(self, one: str, others: Iterable[str]) -> None:
        """Let packets pass again."""
        self._change("delete", one, others)

    def _change(self, verb: str, one: str, others: Iterable[str]) -> None:
        pairs = ", ".join(f"{one} . {other}, {other} . {one}" for other in others)
        self._router.nft(f"{verb} element inet upstream cut {{ {pairs} }}")

    def _spray(self) -> None:
        chosen = sorted(self._brought_to) or [_NOWHERE]
        hosts = (host if host in chosen else chosen[host % len(chosen)] for host in topology.HOSTS)
        elements = ", ".join(f"{drawn} : {host}" for drawn, host in zip(topology.HOSTS, hosts, strict=True))
        self._router.nft(f"flush map inet upstream brought\nadd element inet upstream brought {{ {elements} }}")


def _ruleset() -> str:
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
        iifname {SERVER_LINK} ip daddr {topology.SHARED_NETWORKS[4]} jump spray
        iifname {SERVER_LINK} ip6 daddr {topology.SHARED_NETWORKS[6]} jump spray
    }}

    chain spray {{
        meta mark set numgen random mod {len(topology.HOSTS)} offset 1
        meta mark set meta mark map @brought
    }}

    chain forward {{
        type filter hook forward priority 0; policy accept;
        ip saddr . ip daddr @cut drop
        iifname {topology.FLEET_LINK} ip saddr {topology.CLIENT_NETWORKS[4]} drop
        iifname {topology.FLEET_LINK} ip6 saddr {topology.CLIENT_NETWORKS[6]} drop
    }}
}}
"""
