"""A process that stays changes a table in part, and the table is what the whole policy means."""

from __future__ import annotations

import random
import subprocess
from dataclasses import replace

import pytest

from nat_rewriter.config import read_policy
from nat_rewriter.controller import intent
from nat_rewriter.controller.resident import Resident
from nat_rewriter.kernel.nft import KernelNft
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.ruleset import LiveTable
from nat_rewriter.model.slices import PortRange, Slice
from nat_rewriter.plan import set_changes
from nat_rewriter.render import render
from nat_rewriter.render.increment import address_key, changed_elements

ADDRESSES = {4: "198.51.100.{}", 6: "2001:db8::{}"}
CLIENTS = {4: "10.0.0.{}", 6: "fd00::{}"}


def policy_of(family: int, count: int = 24, coexist: str = "confine") -> Policy:
    """Return slices, eight on an address, each with a client of its own."""
    tables = [f'version = 1\n[controller]\ncoexist = "{coexist}"']
    for number in range(count):
        address, first = ADDRESSES[family].format(1 + number // 8), 1024 * (1 + number % 8)
        tables.append(f'[[slice]]\nname = "s{number}"\naddress = "{address}"\nports = ["{first}-{first + 1023}"]')
    for number in range(count):
        client = CLIENTS[family].format(1 + number)
        tables.append(f'[[snat]]\nname = "c{number}"\nsource = ["{client}"]\nslices = ["s{number}"]')
    return read_policy("\n".join(tables).encode())


def with_slice(policy: Policy, number: int, new: Slice) -> Policy:
    """Return the policy with another slice in the place of one, in the rules as well."""
    old = policy.slices[number]
    slices = tuple(new if one is old else one for one in policy.slices)
    rules = tuple(replace(rule, slices=(new,)) if rule.slices[0] is old else rule for rule in policy.snat)
    return replace(policy, slices=slices, snat=rules)


def narrowed(policy: Policy, number: int, by: int = 1) -> Policy:
    old = policy.slices[number]
    first, last = old.ranges[0].first, old.ranges[0].last
    return with_slice(policy, number, replace(old, ranges=(PortRange(first, last - by),)))


def assert_in_kernel(policy: Policy, nft: KernelNft) -> None:
    with KernelNft() as other:  # one that has kept nothing
        change = intent.read_change(policy, other)
    left = [one for one in change.sets if one.set != "settled"]
    assert not left
    assert not change.rule_lines()


def parts(before: Policy, after: Policy) -> object:
    by_address: dict[tuple[int, int], list[Slice]] = {}
    for owned in before.slices:
        by_address.setdefault(address_key(owned), []).append(owned)
    return changed_elements(before, after, render(before), by_address)


@pytest.mark.parametrize("coexist", ["off", "confine", "refuse"])
def test_a_part_is_what_differs_between_the_wholes(coexist: str) -> None:
    chance = random.Random(coexist)
    policy = policy_of(4, coexist=coexist)
    for _ in range(20):
        after = narrowed(policy, chance.randrange(24), chance.randrange(1, 20))
        old, new = render(policy), render(after)
        whole = {
            one.set: (dict(one.added), dict(one.removed)) for one in set_changes(new, LiveTable("", "", old.elements))
        }
        assert parts(policy, after) == whole
        policy = after


def test_what_changes_the_rules_is_no_part() -> None:
    policy = policy_of(4)
    other = replace(policy.slices[3], ranges=(PortRange(1, 5), PortRange(9, 12)))
    assert parts(policy, with_slice(policy, 3, other)) is None
    assert parts(policy, replace(policy, snat=policy.snat[1:])) is None
    assert parts(policy, replace(policy, controller=replace(policy.controller, srcnat_priority=101))) is None
    six = policy_of(6)
    assert parts(six, narrowed(six, 3)) is None  # an IPv6 range of its own is a chain


@pytest.mark.parametrize("family", [4, 6])
def test_policies_one_after_another(family: int, kernel_nft: KernelNft) -> None:
    resident = Resident(kernel_nft)
    policy = policy_of(family)
    resident.apply(policy)
    for number in (3, 0, 23, 3):
        policy = narrowed(policy, number)
        sent = resident.apply(policy).transaction
        assert sent
        assert_in_kernel(policy, kernel_nft)
    finished = resident.finish()
    assert finished is not None
    assert not [one for one in finished.sets if one.set != "settled"]


def test_only_the_elements_of_the_slice_are_sent(kernel_nft: KernelNft) -> None:
    policy = policy_of(4)
    resident = Resident(kernel_nft)
    resident.apply(policy)
    change = resident.apply(narrowed(policy, 11))
    named = [key for step in change.transaction.steps for key in getattr(step, "elements", getattr(step, "keys", ()))]
    assert {key for key in named if "." in key} == {
        key for key in named if "198.51.100.2 " in f"{key} " or key == "10.0.0.12"
    }
    assert len(named) < 30


def test_a_change_from_outside_is_seen_and_mended(kernel_nft: KernelNft) -> None:
    policy = policy_of(4)
    resident = Resident(kernel_nft)
    resident.apply(policy)
    subprocess.run(["nft", "delete element inet natctl soft4 { 198.51.100.3 }"], check=True)
    after = narrowed(policy, 2)
    resident.apply(after)
    assert_in_kernel(after, kernel_nft)
    subprocess.run(["nft", "flush set inet natctl owned4"], check=True)
    resident.finish()
    assert_in_kernel(after, kernel_nft)
