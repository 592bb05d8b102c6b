"""Pools -> nft text: a table beside the controller's that lets ports of a pool pass for as long as a term lasts.

The kernel counts the terms, so that they end with or without the agent. There are two sets for what is held, filled in
turns: each renewal fills the one that was filled longer ago, while the other still holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nat_rewriter.model.pools import Block, Pool
from nat_rewriter.model.slices import Address, Protocol
from nat_rewriter.render.spelling import IpVersion
from nat_rewriter.render.table import GUARD_PRIORITY, templates

TURNS = ("a", "b")
_PRIORITY = GUARD_PRIORITY + 5


class Shared(NamedTuple):
    """What of a pool is fenced for one IP version, as nft spells it."""

    addresses: str
    ports: str
    transports: str
    echo: bool


@dataclass(frozen=True, slots=True)
class Family(IpVersion):
    """What the table has for one IP version."""

    pools: tuple[Shared, ...]

    @property
    def addresses(self) -> str:
        """All shared addresses."""
        return ", ".join(pool.addresses for pool in self.pools)


def terms_table_name(table: str) -> str:
    """Return the name of the table that the agent has beside the controller's."""
    return f"{table}_terms"


def render_terms(pools: Sequence[Pool], table: str) -> str:
    """Return the table that keeps this host to its terms; nothing is held yet. ``table`` is the controller's."""
    families = [family for number in (4, 6) if (family := _family(pools, number)).pools]
    return (
        templates()
        .get_template("terms.nft.j2")
        .render(table=terms_table_name(table), families=families, turns=TURNS, priority=_PRIORITY)
    )


def renewal(table: str, turn: str, held: Iterable[tuple[Block, Pool, float]], numbers: Iterable[int]) -> str:
    """Return the transaction by which blocks are held for so many seconds more, whatever the sets of that turn had."""
    blocks = list(held)
    lines = []
    for number in numbers:
        of_family = [(block, pool, seconds) for block, pool, seconds in blocks if block.address.version == number]
        for name, elements in (("held", _ports(of_family)), ("echo", _echo_ids(of_family))):
            target = f"inet {terms_table_name(table)} {name}{number}{turn}"
            lines.append(f"flush set {target}")
            if spelled := ", ".join(elements):
                lines.append(f"add element {target} {{ {spelled} }}")
    return "\n".join(lines)


def make_ticket_set(table: str) -> str:
    """Return the commands that make the set of tickets, where there is no table yet."""
    name = terms_table_name(table)
    return f"add table inet {name}\nadd set inet {name} renewing {{ type mark; flags timeout; }}\n"


def make_ticket(table: str, seconds: float) -> str:
    """Return the commands that allow one renewal within so many seconds."""
    name = terms_table_name(table)
    element = f"{{ 1 timeout {round(seconds * 1000)}ms }}"
    return f"flush set inet {name} renewing\nadd element inet {name} renewing {element}"


def use_ticket(table: str) -> str:
    """Return the command that fails, and with it its transaction, where the ticket has ended or been used."""
    return f"delete element inet {terms_table_name(table)} renewing {{ 1 }}"


def versions(pools: Iterable[Pool]) -> tuple[int, ...]:
    """Return the IP versions that pools have addresses of."""
    return tuple(sorted({address.version for pool in pools for address in pool.addresses}))


def _ports(held: Iterable[tuple[Block, Pool, float]]) -> Iterator[str]:
    for block, pool, seconds in held:
        if set(pool.protocols) - {Protocol.ICMP}:
            yield _element(block, seconds)


def _echo_ids(held: Iterable[tuple[Block, Pool, float]]) -> Iterator[str]:
    for block, pool, seconds in held:
        if Protocol.ICMP in pool.protocols:
            yield _element(block, seconds)


def _element(block: Block, seconds: float) -> str:
    return f"{block.address} . {block.ports} timeout {max(1, round(seconds * 1000))}ms"


def _family(pools: Iterable[Pool], number: int) -> Family:
    shared = (_shared(pool, [each for each in pool.addresses if each.version == number]) for pool in pools)
    return Family(number, tuple(each for each in shared if each.addresses))


def _shared(pool: Pool, addresses: Iterable[Address]) -> Shared:
    transports = ", ".join(each.value for each in pool.protocols if each is not Protocol.ICMP)
    return Shared(", ".join(map(str, addresses)), str(pool.ports), transports, Protocol.ICMP in pool.protocols)
