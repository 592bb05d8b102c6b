"""Proxies: where TCP is taken in, and from which slices it goes on."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from nat_rewriter.model.slices import Address, PortRange, Slice

USUAL_CONNECTIONS = 10_000
USUAL_IDLE_S = 3600
USUAL_CONNECT_S = 10

# What marks the packets that TPROXY hands to a proxy, and the routing table that makes them this host's own.
TPROXY_MARK = 0x4E50
TPROXY_TABLE = 20048


class ProxyMode(enum.Enum):
    """How a connection comes, and says where it wants to go."""

    REDIRECT = "redirect"
    TPROXY = "tproxy"
    LISTEN = "listen"
    SOCKS = "socks"
    CONNECT = "connect"

    @property
    def intercepts(self) -> bool:
        """Whether packets are led to the proxy by rules, and their destination is the one wanted."""
        return self in (ProxyMode.REDIRECT, ProxyMode.TPROXY)

    @property
    def is_asked(self) -> bool:
        """Whether applications ask the proxy for a destination."""
        return self in (ProxyMode.SOCKS, ProxyMode.CONNECT)


class ProxyProtocol(enum.Enum):
    """The version of the PROXY header that is sent on."""

    OFF = "off"
    V1 = "v1"
    V2 = "v2"


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """An address and a port of this host."""

    address: Address
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where a proxy with one destination goes: a name or an address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Proxy:
    """One ``[[proxy]]``. What is intercepted matches all given fields; empty ones match everything."""

    name: str
    mode: ProxyMode
    listen: tuple[Endpoint, ...]
    slices: tuple[Slice, ...]
    to: Upstream | None = None
    iifname: tuple[str, ...] = ()
    source: tuple[IPv4Network | IPv6Network, ...] = ()
    destination: tuple[IPv4Network | IPv6Network, ...] = ()
    ports: tuple[PortRange, ...] = ()
    proxy_protocol: ProxyProtocol = ProxyProtocol.OFF
    max_connections: int = USUAL_CONNECTIONS
    idle_timeout_s: int = USUAL_IDLE_S
    connect_timeout_s: int = USUAL_CONNECT_S
    username: str = ""
    password: str = ""

    def source_ranges(self, *, split: bool) -> tuple[tuple[Address, PortRange], ...]:
        """Return where connections may leave from. ``split``: only what the slices keep for sockets."""
        return tuple(
            (owned.address, ports)
            for owned in self.slices
            for ports in (owned.socket_ranges if split else owned.ranges)
        )  # fmt: skip
