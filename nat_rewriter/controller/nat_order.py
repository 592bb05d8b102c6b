"""Who rewrites first: chains of other tables that see new flows before natctl's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from nat_rewriter.config import FIRST_PRIORITY
from nat_rewriter.errors import NatctlError
from nat_rewriter.explain.hooks import chains_of
from nat_rewriter.kernel.features import has_capability
from nat_rewriter.kernel.nft_chains import BaseChain, list_base_chains, list_legacy_nat_tables
from nat_rewriter.model.checkup import Answer, Check, Weight
from nat_rewriter.model.policy import Controller, Policy

Priorities = Mapping[str, int]  # by hook

# NF_IP_PRI_NAT_SRC and NF_IP_PRI_NAT_DST, where iptables has its chains.
USUAL: Priorities = {"postrouting": 100, "prerouting": -100}
_NAME, _PURPOSE = "first-to-rewrite", "[[snat]] and [[dnat]]: a packet is rewritten once, by the first chain"
_KEYS = {"postrouting": "srcnat_priority", "prerouting": "dstnat_priority"}


def check_earlier_nat(policy: Policy | None) -> Check:
    """Check that no other table rewrites packets before natctl's own sees them."""
    if not has_capability("CAP_NET_ADMIN"):
        return _check(Answer.UNKNOWN, "listing chains needs CAP_NET_ADMIN")
    own, table = own_priorities(policy), (policy.controller if policy else Controller()).table
    try:
        earlier = earlier_chains(list_base_chains(), own, table)
    except NatctlError as error:
        return _check(Answer.UNKNOWN, str(error))
    legacy = [f"iptables-legacy table nat ({family})" for family in list_legacy_nat_tables() if _are_late(own)]
    told = [f"table {one.family} {one.table} chain {one.name} ({one.hook}, {one.priority})" for one in earlier]
    if not told and not legacy:
        return _check(Answer.YES, "no other chain rewrites packets first")
    firsts = dict(_firsts(own, earlier, bool(legacy)))
    return _check(Answer.NO, f"these rewrite first: {', '.join(told + legacy)}", _remedy(firsts))


def own_priorities(policy: Policy | None) -> Priorities:
    """Return the last priority at which natctl rewrites, by hook; without a policy, as most have it."""
    if policy is None:
        return USUAL
    own = sorted((chain for chain in chains_of(policy) if chain.type == "nat"), key=lambda chain: chain.priority)
    last = {chain.hook: chain.priority for chain in own}
    return {hook: last[hook] for hook in USUAL if hook in last}


def earlier_chains(chains: Iterable[BaseChain], own: Priorities, table: str) -> list[BaseChain]:
    """Return the chains of other tables that rewrite packets no later than natctl's: those that have a rule.

    Chains of one priority are called in the order of their registration, which is anyone's.
    """
    return [
        chain
        for chain in chains
        if chain.type == "nat" and chain.rules and chain.hook in own and chain.priority <= own[chain.hook]
        if (chain.family, chain.table) != ("inet", table)
    ]


def _are_late(own: Priorities) -> bool:
    return any(priority >= USUAL[hook] for hook, priority in own.items())


def _firsts(own: Priorities, earlier: Iterable[BaseChain], legacy: bool) -> Iterator[tuple[str, int]]:
    """Yield for each hook where natctl comes too late the priority that would be early enough."""
    for hook, priority in own.items():
        others = [chain.priority for chain in earlier if chain.hook == hook]
        if legacy and priority >= USUAL[hook]:
            others.append(USUAL[hook])
        if others:
            yield hook, min(others) - 1


def _remedy(firsts: Priorities) -> str:
    if min(firsts.values()) <= FIRST_PRIORITY:
        return "let those chains leave natctl's packets alone: natctl cannot come before them"
    keys = " and ".join(f"{_KEYS[hook]} = {priority}" for hook, priority in firsts.items())
    return f"{keys} in [controller], or let those chains leave natctl's packets alone"


def _check(answer: Answer, found: str, remedy: str = "") -> Check:
    return Check(_NAME, answer, Weight.RECOMMENDED, _PURPOSE, found, remedy)
