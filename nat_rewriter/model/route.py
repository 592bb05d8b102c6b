"""What the operator wants of forwarded packets whose source is a soft-unicast address that is local as well."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from nat_rewriter.model.slices import Address, Slice


class EarlyDemux(enum.Enum):
    """How replies to the tunnel get past sockets that hold their tuple."""

    INGRESS = "ingress"
    DEVICE = "device"
    SYSCTL = "sysctl"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Route:
    """Packets that come out of a tunnel device from ports of slices, and the replies to them.

    ``outer``: the devices on which replies arrive. ``via``: gateways behind the tunnel, at most one of each family,
    where it is not a point-to-point link. ``device``: what placeholder sockets are bound to (EarlyDemux.DEVICE).
    ``mark`` is what the bits of ``mask`` are set to, in packet and conntrack marks. ``table``, ``priority`` and
    ``local_priority``: the routing table, its rule, and the rule of the local table behind it. ``idle_s``: how long a
    tuple is remembered after its last packet, and ``tuples`` how many of them at most, of each family
    (EarlyDemux.INGRESS).
    """

    tunnel: str
    outer: tuple[str, ...]
    slices: tuple[Slice, ...]
    early_demux: EarlyDemux = EarlyDemux.INGRESS
    via: tuple[Address, ...] = ()
    device: str = "lo"
    mark: int = 0x5000000
    mask: int = 0xFF000000
    table: int = 5432
    priority: int = 1
    local_priority: int = 2
    idle_s: int = 300
    tuples: int = 65536

    @property
    def families(self) -> tuple[int, ...]:
        """The IP versions of the slices."""
        return tuple(sorted({owned.address.version for owned in self.slices}))

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The soft-unicast addresses of the slices, each once, IPv4 first."""
        return tuple(sorted({owned.address for owned in self.slices}, key=lambda one: (one.version, int(one))))

    def gateway(self, family: int) -> Address | None:
        """Return the gateway of a family, None where there is none."""
        return next((one for one in self.via if one.version == family), None)
