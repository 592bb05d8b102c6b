"""Policy routing as the kernel has it, the steps that change it, and what is kept so that it can be as before."""

from __future__ import annotations

from dataclasses import dataclass, field

from nat_rewriter.model.route import Route
from nat_rewriter.model.slices import Address

LOCAL_TABLE = 255  # RT_TABLE_LOCAL
FAMILIES = (4, 6)


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """A routing policy rule. ``plain``: nothing but ``mark`` and ``mask`` selects its packets, and it looks up a table.

    ``own``: natctl made it (FRA_PROTOCOL says so).
    """

    family: int
    priority: int
    table: int
    mark: int = 0
    mask: int = 0
    plain: bool = True
    own: bool = False

    @property
    def is_local(self) -> bool:
        """Whether all packets look up the local table by it."""
        return self.plain and self.table == LOCAL_TABLE and not self.mask


@dataclass(frozen=True, slots=True)
class TunnelRoute:
    """A route of natctl's table: a soft-unicast address lies behind a device."""

    table: int
    address: Address
    device: str
    via: Address | None = None


@dataclass(frozen=True, slots=True)
class AddRule:
    """Make a rule."""

    rule: Rule


@dataclass(frozen=True, slots=True)
class DeleteRule:
    """Take a rule away."""

    rule: Rule


@dataclass(frozen=True, slots=True)
class AddRoute:
    """Make a route."""

    route: TunnelRoute


@dataclass(frozen=True, slots=True)
class DeleteRoute:
    """Take a route away."""

    route: TunnelRoute


@dataclass(frozen=True, slots=True)
class SetSysctl:
    """Give a sysctl a value."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class LoadTable:
    """Replace natctl's table for routes, in whichever family it is."""

    family: str
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class DeleteTable:
    """Take natctl's table for routes away."""

    name: str


Step = AddRule | DeleteRule | AddRoute | DeleteRoute | SetSysctl | LoadTable | DeleteTable


@dataclass(frozen=True, slots=True)
class Kept:
    """What natctl has changed, written down before it does.

    ``locals``: family -> priorities at which rules of the local table were. ``sysctls``: name -> (value before, value
    that natctl gives). ``text`` and ``listing``: the nft table as it was loaded and as the kernel lists it (empty: not
    known). ``covers``: the ports whose replies do not get to local sockets: address, protocol, first, last.
    """

    locals: dict[int, tuple[int, ...]] = field(default_factory=dict)
    sysctls: dict[str, tuple[str, str]] = field(default_factory=dict)
    text: str = ""
    listing: str = ""
    covers: tuple[tuple[str, str, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Live:
    """What the kernel has: rules of both families, natctl's routes, sysctls (None: there is none), and the nft table.

    ``devices``: name -> index of those of the configuration that there are.
    """

    rules: tuple[Rule, ...]
    routes: tuple[TunnelRoute, ...]
    sysctls: dict[str, str | None]
    table_family: str | None
    listing: str
    devices: dict[str, int]


@dataclass(frozen=True, slots=True)
class SysctlState:
    """A sysctl that a route needs: what it is, what it has to be, and what it was before natctl set it."""

    name: str
    value: str | None
    wanted: str
    before: str | None


@dataclass(frozen=True, slots=True)
class RoutingView:
    """How a route stands in the kernel.

    ``pending``: the steps that apply would take; none of them where all is in place. ``rules``: natctl's own and those
    of the local table. ``packets``: counted by name and IP version (sent4, replies4, passed4, forwarded4), ``tuples``
    how many are known by family; both empty where there is no table. ``bound`` and ``unbound``: sockets that are
    connected from ports of the slices, by whether they are bound to a device.
    """

    route: Route
    pending: tuple[Step, ...]
    missing_devices: tuple[str, ...]
    rules: tuple[Rule, ...]
    routes: tuple[TunnelRoute, ...]
    sysctls: tuple[SysctlState, ...]
    table: str
    packets: dict[str, int]
    tuples: dict[str, int]
    bound: int
    unbound: int

    @property
    def state(self) -> str:
        """``in place``, ``incomplete``, or ``absent``."""
        if not self.pending and not self.missing_devices:
            return "in place"
        return "incomplete" if self.routes or any(rule.own for rule in self.rules) or self.packets else "absent"

    @property
    def captured(self) -> dict[int, int]:
        """By family the replies that were marked, and came no further: a socket took them.

        Where replies are handed on before the IP layer, there are none.
        """
        return {
            family: self.packets[f"replies{family}"] - self.packets[f"forwarded{family}"]
            for family in FAMILIES
            if f"forwarded{family}" in self.packets
        }
