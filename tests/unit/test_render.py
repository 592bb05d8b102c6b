"""What a configuration means in nft: golden rulesets, compared byte for byte.

``NATCTL_UPDATE_GOLDENS=1 pytest tests/unit/test_render.py`` writes them anew; read the difference before it is
committed. That the kernel takes each of them is shown in tests/contract.
"""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

import pytest

from nat_rewriter import __version__
from nat_rewriter.config import read_policy
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.ruleset import Ruleset
from nat_rewriter.render import outline, render, ruleset_text

GOLDEN = Path(__file__).with_name("golden")
CONFIGURATIONS = sorted(path.stem for path in GOLDEN.glob("*.toml"))
UPDATE = "NATCTL_UPDATE_GOLDENS"

SLICE = """
version = 1
[controller]
coexist = "{coexist}"
guard = "{guard}"
[[slice]]
name = "ams-1"
address = "198.51.100.10"
ports = ["9000-9009"]
protocols = ["tcp", "udp", "icmp"]
"""


def policy_of(rules: str = "", *, coexist: str = "off", guard: str = "off") -> Policy:
    return read_policy((SLICE.format(coexist=coexist, guard=guard) + rules).encode())


def chain(ruleset: Ruleset, name: str) -> list[str]:
    """Return the rules of a chain of a skeleton, without its hook and comments."""
    found = re.search(rf"^\tchain {name} \{{\n(.*?)^\t\}}", ruleset.skeleton, re.DOTALL | re.MULTILINE)
    assert found, f"no chain {name} in:\n{ruleset.skeleton}"
    lines = [line.strip() for line in found[1].splitlines()]
    return [line for line in lines if not line.startswith(("#", "type "))]


def test_what_differs_in_its_skeleton_differs_in_its_shape() -> None:
    outlines = [outline(read_policy(GOLDEN / f"{name}.toml")) for name in CONFIGURATIONS]
    for one, other in itertools.combinations(outlines, 2):
        assert (one.skeleton() == other.skeleton()) or one.shape != other.shape


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_means_its_golden_ruleset(name: str) -> None:
    policy = read_policy(GOLDEN / f"{name}.toml")
    text = ruleset_text(policy).replace(f"# natctl {__version__}\n", "# natctl VERSION\n", 1)
    golden = GOLDEN / f"{name}.nft"
    if os.environ.get(UPDATE):
        golden.write_text(text)
    assert golden.exists(), f"{golden.name} is missing: {UPDATE}=1 writes it"
    assert text == golden.read_text()


def test_no_golden_ruleset_is_left_over() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.nft")) == CONFIGURATIONS


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_skeleton_holds_no_elements_and_the_elements_are_those_of_the_text(name: str) -> None:
    policy = read_policy(GOLDEN / f"{name}.toml")
    ruleset, text = render(policy), ruleset_text(policy)
    assert "elements = {" not in ruleset.skeleton
    for elements in ruleset.elements.values():
        for key, value in elements.items():
            assert f"\t\t\t{key} : {value}" if value else f"\t\t\t{key}" in text
    without = re.sub(r"^\t\telements = \{\n.*?^\t\t\}\n", "", text, flags=re.DOTALL | re.MULTILINE)
    assert without.partition("\n\n")[2] == ruleset.skeleton


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_set_with_elements_is_declared_once(name: str) -> None:
    ruleset = render(read_policy(GOLDEN / f"{name}.toml"))
    declared = re.findall(r"^\t(?:set|map) (\S+) \{", ruleset.skeleton, re.MULTILINE)
    assert len(declared) == len(set(declared))
    assert set(ruleset.elements) <= set(declared)
    assert ruleset.dynamic.isdisjoint(name for name, elements in ruleset.elements.items() if elements)


def test_the_same_configuration_gives_the_same_text() -> None:
    """Nothing may depend on the order of a set or on a seed drawn at random."""
    source = (GOLDEN / "every-key.toml").read_bytes()
    assert len({ruleset_text(read_policy(source)) for _ in range(5)}) == 1


def test_the_number_of_rules_does_not_grow_with_the_clients() -> None:
    def rules_for(clients: int) -> tuple[int, int]:
        slices = "".join(
            f'\n[[slice]]\nname = "s{n}"\naddress = "198.51.{100 + n // 256}.{n % 256}"\nports = ["7000-7009"]'
            for n in range(11, 11 + clients)
        )
        rules = "".join(
            f'\n[[snat]]\nname = "c{n}"\nsource = ["10.0.{n // 256}.{n % 256}"]\nslices = ["s{n}"]'
            for n in range(11, 11 + clients)
        )
        ruleset = render(policy_of(slices + rules))
        (elements,) = [found for name, found in ruleset.elements.items() if name.startswith("clients")]
        return len(ruleset.skeleton.splitlines()), len(elements)

    (few_lines, few), (many_lines, many) = rules_for(2), rules_for(500)
    assert few_lines == many_lines
    assert (few, many) == (2, 500)


def test_rules_whose_sources_meet_stay_in_their_order() -> None:
    ruleset = render(read_policy(GOLDEN / "order.toml"))
    ports = [rule.partition("198.51.100.10:")[2].partition(" ")[0] for rule in chain(ruleset, "srcnat")]
    assert ports == ["9000-9009", "9010-9019", "9020-9029"]


def test_an_exclusion_ends_the_rewriting_before_the_rule_that_has_it() -> None:
    rules = chain(render(read_policy(GOLDEN / "exclude.toml")), "srcnat")
    assert ["accept" in rule for rule in rules] == [True, True, False]
    assert "203.0.113.7" in rules[0]
    assert "10.0.0.128/25" in rules[1]


def test_a_rule_of_one_family_leaves_the_other_alone() -> None:
    ruleset = render(read_policy(GOLDEN / "minimal-ipv6.toml"))
    assert "ip saddr" not in ruleset.skeleton
    assert "ipv4_addr" not in ruleset.skeleton


def test_a_slice_of_one_protocol_is_for_that_one_alone() -> None:
    rules = """
        [[slice]]
        name = "udp-only"
        address = "198.51.100.11"
        ports = ["7000"]
        protocols = ["udp"]
        [[snat]]
        name = "clients"
        iifname = "fish0"
        slices = ["udp-only"]
        """
    ruleset = render(policy_of(rules, guard="drop"))
    (rule,) = chain(ruleset, "srcnat")
    assert 'iifname "fish0" meta l4proto udp snat ip to 198.51.100.11:7000' in rule
    assert "198.51.100.11 . udp . 7000" in ruleset.elements["owned4"]
    assert "198.51.100.11 . tcp . 7000" not in ruleset.elements["owned4"]


@pytest.mark.parametrize("guard", ["off", "count", "drop"])
def test_the_guard_drops_only_when_asked(guard: str) -> None:
    ruleset = render(policy_of(guard=guard))
    assert ("chain guard " in ruleset.skeleton) == (guard != "off")
    assert ("counter drop" in ruleset.skeleton) == (guard == "drop")


@pytest.mark.parametrize("spread", ["client", "flow", "random"])
def test_every_port_gets_the_same_share_of_a_spread(spread: str) -> None:
    """Ranges of 10 and of 20 ports: the larger one is entered twice."""
    ruleset = render(read_policy(GOLDEN / f"spread-{spread}.toml"))
    tcp = next(rule for rule in chain(ruleset, "srcnat") if "tcp" in rule and "snat ip to" in rule)
    assert tcp.count("198.51.100.10 . 9000-9009") * 2 == tcp.count("198.51.100.10 . 9100-9119")
    assert "mod 3" in tcp
