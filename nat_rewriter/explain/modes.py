"""The same configuration in each mode of ``coexist``."""

from __future__ import annotations

from dataclasses import replace

from nat_rewriter.model.policy import Coexist, Policy
from nat_rewriter.model.slices import Slice


def in_mode(policy: Policy, coexist: Coexist) -> Policy:
    """Return the policy with another ``coexist``. Ports are kept for sockets under ``split`` alone."""
    if coexist is policy.controller.coexist:
        return policy
    controller = replace(policy.controller, coexist=coexist)
    if coexist is Coexist.SPLIT:
        return replace(policy, controller=controller)
    return replace(
        policy,
        controller=controller,
        slices=tuple(map(_whole, policy.slices)),
        snat=tuple(rule._replace(slices=tuple(map(_whole, rule.slices))) for rule in policy.snat),
        dnat=tuple(replace(rule, slice=_whole(rule.slice)) for rule in policy.dnat),
    )


def _whole(owned: Slice) -> Slice:
    return owned._replace(socket_ranges=())
