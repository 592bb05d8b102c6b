"""The whole table: what each family holds, given to the template."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nat_rewriter import __version__
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.ruleset import Ruleset
from nat_rewriter.model.slices import PortRange, Slice
from nat_rewriter.render import ownership
from nat_rewriter.render.blocks import Blocks, block_elements, blocks_of, confining_elements, is_in_blocks
from nat_rewriter.render.parts import Parts
from nat_rewriter.render.rewriting import Rewriting, dnat_elements, rewriting_of
from nat_rewriter.render.spelling import IpVersion
from nat_rewriter.render.spreading import spread_by_chance

if TYPE_CHECKING:
    import jinja2

# After every source NAT, so that the guard sees packets as they leave (NF_IP_PRI_NAT_SRC is 100, LAST is maximal).
GUARD_PRIORITY = 300

# The transport protocols of which no flow is known that leaves a soft-unicast address outside its slices.
SETTLED = "settled"

SetElements = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Family(IpVersion):
    """What the table holds for IPv4 or for IPv6."""

    slices: tuple[Slice, ...]
    rewriting: Rewriting
    dnat: SetElements
    dnat_port: SetElements
    draining: tuple[Slice, ...]

    @property
    def blocks(self) -> tuple[Blocks, ...]:
        """The sets of port blocks."""
        return blocks_of(self.number)

    @property
    def spills(self) -> dict[str, str]:
        """The chains by which a port moves to another range of its slice, and what each does."""
        found = {
            ownership.spill_chain(owned, self.number): spread_by_chance(owned, self.number)
            for owned in self.slices
            if len(owned.ranges) > 1
        }
        return dict(sorted(found.items()))

    @property
    def shape(self) -> object:
        """All that the templates look at."""
        ranges = self.keep_ranges if self.number == 6 else []
        return self.number, self.rewriting.shape, self.spills, ranges, bool(self.draining)

    @property
    def keep_ranges(self) -> list[PortRange]:
        """The distinct port ranges of the slices, each a chain where maps cannot hold ranges."""
        return ownership.keep_ranges(self.slices)


@dataclass(frozen=True, slots=True)
class Outline:
    """A policy as its table holds it, IP version by IP version: what skeleton and elements are made of."""

    policy: Policy
    families: Sequence[Family]

    @property
    def table(self) -> str:
        """The name of the table."""
        return self.policy.controller.table

    @property
    def shape(self) -> object:
        """All that the templates look at: outlines of one shape have one skeleton, and none has to be written out."""
        policy = self.policy
        settings = (policy.controller, Parts.of(policy), policy.proxies, bool(policy.dnat), bool(policy.draining))
        return settings, [family.shape for family in self.families]

    @property
    def dynamic(self) -> frozenset[str]:
        """The names of the sets that packets fill."""
        found = {f"{name}{family.number}" for name in ("strays", "claims") for family in self.families}
        return frozenset(found | {SETTLED, *_marked_sets(self.policy, self.families)})

    def skeleton(self) -> str:
        """Return the table with empty sets, as nft text."""
        return _fill(self.policy, self.families, {})

    def elements(self) -> dict[str, SetElements]:
        """Return what the sets hold."""
        return _elements(self.policy, self.families)

    def ruleset(self, skeleton: str) -> Ruleset:
        """Return the whole, with its skeleton as it is."""
        return Ruleset(self.table, skeleton, self.elements(), self.dynamic)


def outline(policy: Policy) -> Outline:
    """Return how the table of a policy is laid out."""
    return Outline(policy, _families(policy))


def render(policy: Policy) -> Ruleset:
    """Return the ruleset that a policy means: a skeleton with empty sets, and their elements."""
    outlined = outline(policy)
    return outlined.ruleset(outlined.skeleton())


def ruleset_text(policy: Policy) -> str:
    """Return the policy as one nft file that replaces the table when it is loaded, whatever was there before."""
    families = _families(policy)
    table = policy.controller.table
    head = f"# natctl {__version__}\ntable inet {table}\ndelete table inet {table}\n\n"
    return head + _fill(policy, families, _elements(policy, families))


def _families(policy: Policy) -> list[Family]:
    found = (
        Family(
            number,
            tuple(owned for owned in policy.slices if owned.address.version == number),
            rewriting_of(policy.snat, number),
            *dnat_elements(policy.dnat, number),
            tuple(owned for owned in policy.draining if owned.address.version == number),
        )
        for number in (4, 6)
    )
    return [family for family in found if family.slices or family.rewriting.statements]


def _marked_sets(policy: Policy, families: Sequence[Family]) -> list[str]:
    return [policy.controller.marked_set(family.number) for family in families if policy.controller.local_mark]


def _elements(policy: Policy, families: Sequence[Family]) -> dict[str, SetElements]:
    parts = Parts.of(policy)
    found: dict[str, SetElements] = {SETTLED: {}} if parts.settles else {}
    found |= {name: {} for name in _marked_sets(policy, families)}
    for family in families:
        found |= {f"{name}{family.number}": elements for name, elements in _named_elements(policy, family)}
        if parts.guard:
            found |= block_elements(family.slices, family.number)
        if parts.confine:
            found |= confining_elements(family.slices, family.number)
        for maps in (family.rewriting.client_maps, family.rewriting.address_maps, family.rewriting.source_sets):
            found |= maps
    return found


def _named_elements(policy: Policy, family: Family) -> list[tuple[str, SetElements]]:
    found: list[tuple[str, SetElements]] = []
    parts = Parts.of(policy)
    outside_blocks = [owned for owned in family.slices if not is_in_blocks(owned)]
    if parts.soft:
        found.append(("soft", ownership.soft_addresses(family.slices)))
    if parts.guard:
        found += [
            ("owned", ownership.owned_ports(outside_blocks)),
            ("echo", ownership.owned_echo(family.slices)),
            ("strays", {}),
        ]
    if parts.claims:
        found.append(("claims", {}))
    if parts.spill:
        found.append(("spill", ownership.spilled_ports(family.slices, family.number)))
    if parts.split:
        found.append(("rewrites", ownership.rewritten_ports(family.slices)))
    if parts.confine:
        found += [
            ("confine", ownership.confined_ports(outside_blocks, family.number)),
            ("confine_echo", ownership.confined_echo(family.slices, family.number)),
        ]
    if family.draining:
        found.append(("draining", ownership.owned_ports(family.draining)))
    if policy.dnat:
        found += [("dnat", family.dnat), ("dnat_port", family.dnat_port)]
    return found


def _fill(policy: Policy, families: Sequence[Family], elements: Mapping[str, SetElements]) -> str:
    from nat_rewriter.render.proxying import proxying_of

    return (
        templates()
        .get_template("table.nft.j2")
        .render(
            policy=policy,
            parts=Parts.of(policy),
            families=families,
            elements=elements,
            guard_priority=GUARD_PRIORITY,
            proxying=proxying_of(policy.proxies),
        )
    )


@functools.cache
def templates() -> jinja2.Environment:
    """Return where the templates are found, and how they are read."""
    import jinja2

    # No escaping: this is nft text, and every value in it was checked by config and spelled by render.
    return jinja2.Environment(
        loader=jinja2.PackageLoader("nft_templates", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
