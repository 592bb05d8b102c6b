"""The base chains that a packet passes, as the rendered table has them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nat_rewriter.model.policy import Policy
from nat_rewriter.render import render

# NF_IP_PRI_CONNTRACK, NF_IP_PRI_NAT_DST, NF_IP_PRI_NAT_SRC: include/uapi/linux/netfilter_ipv4.h
CONNTRACK_PRIORITY = -200
_NAT_PLACES = {"prerouting": -100, "output": -100, "input": 100, "postrouting": 100}
_BASE_CHAIN = re.compile(r"^\s*chain (\w+) \{\s*\n\s*type (\w+) hook (\w+) priority (-?\d+);", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain that the kernel calls: its name, type, hook and priority."""

    name: str
    type: str
    hook: str
    priority: int

    @property
    def place(self) -> int:
        """Where in its hook a packet meets it: the kernel asks all chains of type nat at one priority of its own."""
        return _NAT_PLACES[self.hook] if self.type == "nat" else self.priority


def base_chains(skeleton: str) -> list[BaseChain]:
    """Return the base chains of a table as text, in the order of the text."""
    return [BaseChain(name, kind, hook, int(number)) for name, kind, hook, number in _BASE_CHAIN.findall(skeleton)]


def chains_at(chains: Sequence[BaseChain], hook: str) -> list[BaseChain]:
    """Return the chains of a hook in the order a packet passes them."""
    return sorted((chain for chain in chains if chain.hook == hook), key=lambda chain: (chain.place, chain.priority))


def chains_of(policy: Policy) -> list[BaseChain]:
    """Return the base chains of the table that a policy means."""
    return base_chains(render(policy).skeleton)
