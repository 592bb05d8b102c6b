"""How values are spelled in nft: the one place where a checked value becomes nft text.

The spelling is the one that ``nft list`` uses, so that a rendered element and a listed one are equal as text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, inet_ntop

from nat_rewriter.model.policy import Network
from nat_rewriter.model.slices import Address, PortRange, Protocol


def concat(*fields: object) -> str:
    """Return the fields as an nft concatenation: ``198.51.100.10 . tcp . 9000-9009``."""
    return " . ".join([field if isinstance(field, str) else _spelled(field) for field in fields])


def address_text(address: Address) -> str:
    """Return an address as nft lists it."""
    return _address_text(address.version, int(address))


@lru_cache(maxsize=1 << 17)
def _address_text(family: int, number: int) -> str:
    # An address is spelled once for each protocol, range and set: most of the time of rendering, were it not kept.
    return str(IPv6Address(number)) if family == 6 else inet_ntop(AF_INET, number.to_bytes(4))


def _spelled(field: object) -> str:
    return address_text(field) if isinstance(field, IPv4Address | IPv6Address) else str(field)


def network_text(network: Network) -> str:
    """Return a network as nft lists it: a host without its prefix length."""
    return address_text(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def set_of(values: Iterable[object]) -> str:
    """Return one value as it is, several as an anonymous set."""
    texts = [str(value) for value in values]
    return texts[0] if len(texts) == 1 else "{ " + ", ".join(texts) + " }"


def quoted(values: Iterable[str]) -> str:
    """Return interface names as nft strings; config has made sure that no name can end its quotes."""
    return set_of(f'"{value}"' for value in values)


def target(address: Address, ports: PortRange) -> str:
    """Return what follows ``snat ip to``: ``198.51.100.10:9000-9009``, ``[2001:db8::1]:9000-9009``."""
    host = f"[{address}]" if address.version == 6 else str(address)
    return f"{host}:{ports}"


def port_data(address: Address, ports: PortRange) -> str:
    """Return address . ports as the data of a map of ranges: nft reads a lone port there as data of another length."""
    return f"{address_text(address)} . {ports.first}-{ports.last}"


def l4proto(protocol: Protocol, family: int) -> str:
    """Return nft's name of a protocol: ICMP is ipv6-icmp in IPv6."""
    return "ipv6-icmp" if protocol is Protocol.ICMP and family == 6 else protocol.value


def ip_word(family: int) -> str:
    """Return nft's word for a family's header: ip or ip6."""
    return "ip6" if family == 6 else "ip"


def icmp_word(family: int) -> str:
    """Return nft's word for a family's ICMP header: icmp or icmpv6."""
    return "icmpv6" if family == 6 else "icmp"


@dataclass(frozen=True, slots=True)
class IpVersion:
    """An IP version as nft spells what belongs to it: the base of what a table has for one."""

    number: int

    @property
    def ip(self) -> str:
        """The header."""
        return ip_word(self.number)

    @property
    def icmp(self) -> str:
        """The ICMP header."""
        return icmp_word(self.number)

    @property
    def nfproto(self) -> str:
        """The family."""
        return f"ipv{self.number}"

    @property
    def address(self) -> str:
        """The type of an address."""
        return f"ipv{self.number}_addr"
