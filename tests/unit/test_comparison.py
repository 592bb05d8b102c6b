"""What differs between two policies, by name: told once, told right, and nothing where nothing does."""

from __future__ import annotations

import pytest

from nat_rewriter.comparison import compare
from nat_rewriter.config import read_policy
from nat_rewriter.model.changes import Verb
from nat_rewriter.model.policy import Policy
from nat_rewriter.report.changes import policy_change_lines, policy_change_object

BASE = """
version = 1
[controller]
guard = "drop"

[[slice]]
name = "ams-1"
address = "198.51.100.10"
ports = ["9000-9009"]

[[slice]]
name = "ams-2"
address = "198.51.100.10"
ports = ["9100-9109"]

[[snat]]
name = "one"
iifname = "fish0"
source = ["10.0.0.0/24"]
slices = ["ams-1"]

[[snat]]
name = "two"
iifname = "fish1"
slices = ["ams-2"]

[[dnat]]
name = "in"
slice = "ams-1"
ports = ["9001"]
to = "10.0.0.2"
"""


def policy(*replacements: tuple[str, str]) -> Policy:
    text = BASE
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    return read_policy(text.encode())


def lines(*replacements: tuple[str, str]) -> list[str]:
    return list(policy_change_lines(compare(policy(), policy(*replacements))))


def test_equal_policies_do_not_differ() -> None:
    assert not compare(policy(), policy())
    assert lines() == []


CHANGES = {
    "ports": (('"9000-9009"', '"9000-9019"'), "~ slice ams-1: ports 9000-9009 -> 9000-9019"),
    "more ports": (('"9000-9009"', '"9000-9009", "9020"'), "~ slice ams-1: ports 9000-9009 -> 9000-9009, 9020"),
    "a setting": (('guard = "drop"', 'guard = "count"'), "~ controller guard: drop -> count"),
    "a match": (('"10.0.0.0/24"', '"10.0.0.0/25"'), "~ snat one: source 10.0.0.0/24 -> 10.0.0.0/25"),
    "slices of a rule": (
        ('slices = ["ams-2"]', 'slices = ["ams-2", "ams-1"]'),
        "~ snat two: slices ams-2 -> ams-2, ams-1",
    ),
    "a field more": (('iifname = "fish1"', 'iifname = "fish1"\nmark = 7'), "~ snat two: mark none -> 0x7"),
    "where to": (('to = "10.0.0.2"', 'to = "10.0.0.2:80"'), "~ dnat in: to 10.0.0.2 -> 10.0.0.2:80"),
    "timeouts": (
        ('guard = "drop"', 'guard = "drop"\nsrcnat_priority = 90'),
        "~ controller srcnat_priority: 100 -> 90",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("replacement", "line"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_told_once(replacement: tuple[str, str], line: str) -> None:
    """A rule is not told for a change of the slice that it names."""
    assert lines(replacement) == [line]


def test_slices_and_rules_come_and_go() -> None:
    renamed = lines(("ams-1", "ams-9"))
    assert renamed == [
        "- slice ams-1: address 198.51.100.10, ports 9000-9009, protocols tcp, udp",
        "+ slice ams-9: address 198.51.100.10, ports 9000-9009, protocols tcp, udp",
        "~ snat one: slices ams-1 -> ams-9",
        "~ dnat in: slice ams-1 -> ams-9",
    ]
    everything = compare(None, policy())
    assert {one.verb for one in everything.differences} == {Verb.ADDED}
    assert [one.name for one in everything.differences] == ["ams-1", "ams-2", "one", "two", "in"]


def test_the_order_of_rules_matters() -> None:
    first, second = BASE[BASE.index('[[snat]]\nname = "one"') : BASE.index('[[snat]]\nname = "two"')], "[[dnat]]"
    swapped = read_policy((BASE.replace(first, "").replace(second, first + second)).encode())
    assert list(policy_change_lines(compare(policy(), swapped))) == [
        "~ snat one: place 1 -> 2",
        "~ snat two: place 2 -> 1",
    ]


def test_long_lists_are_shortened_for_people_alone() -> None:
    many = ", ".join(f'"{port}"' for port in range(20000, 20200, 2))
    many += ', "9001"'
    (line,) = lines(('"9000-9009"', many))
    assert len(line) < 150
    assert "9000-9009 -> 9001, 20000, 20002," in line
    assert line.endswith("20196, 20198")
    found = policy_change_object(compare(policy(), policy(('"9000-9009"', many))))
    assert found["slices"]["changed"][0]["after"]["ports"].count(",") == 100


def test_as_json() -> None:
    found = policy_change_object(compare(policy(), policy(("9000-9009", "9000-9008"), ("10.0.0.2", "10.0.0.3"))))
    assert found["settings"] == {}
    assert found["slices"] == {
        "added": [],
        "changed": [
            {
                "name": "ams-1",
                "before": {"address": "198.51.100.10", "ports": "9000-9009", "protocols": "tcp, udp"},
                "after": {"address": "198.51.100.10", "ports": "9000-9008", "protocols": "tcp, udp"},
            }
        ],
        "withdrawn": [],
    }
    (rule,) = found["rules"]["changed"]
    assert (rule["kind"], rule["name"], rule["after"]["to"]) == ("dnat", "in", "10.0.0.3")
