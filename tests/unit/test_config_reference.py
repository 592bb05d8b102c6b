"""docs/reference.toml is what it says: complete, sound, and sound as well with its commented keys."""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from nat_rewriter.config import read_policy
from nat_rewriter.errors import ConfigError

REFERENCE = Path(__file__).parents[2] / "docs" / "reference.toml"
SECTIONS = {
    "": "",
    "controller": "[controller]",
    "controller.timeouts": "[controller.timeouts]",
    "slice": "[[slice]]",
    "slice.psid": "[[slice]]\n[slice.psid]",
    "snat": "[[snat]]",
    "dnat": "[[dnat]]",
    "proxy": "[[proxy]]",
    "route": "[route]",
    "pool": "[[pool]]",
    "store": "[store]",
}


def with_commented_keys() -> str:
    text = re.sub(r"^#(?=[a-z_]+ = )", "", REFERENCE.read_text(), flags=re.MULTILINE)
    return text.replace('coexist = "confine"', 'coexist = "split"')


def accepted_keys(section: str) -> set[str]:
    """Ask the reader itself: a key it does not know makes it list those it knows."""
    with pytest.raises(ConfigError) as caught:
        read_policy(f"{SECTIONS[section]}\nno_such_key = 1\n".encode())
    (known,) = (
        problem.expected.partition("known here: ")[2]
        for problem in caught.value.problems
        if problem.path.endswith("no_such_key")
    )
    return set(known.split(", "))


def shown_keys(section: str) -> set[str]:
    tables: list[dict[str, Any]] = [tomllib.loads(with_commented_keys())]
    for part in section.split(".") if section else []:
        found = [table[part] for table in tables if part in table]
        tables = [table for item in found for table in (item if isinstance(item, list) else [item])]
    return {key for table in tables for key in table}


def test_the_reference_is_a_sound_configuration() -> None:
    policy = read_policy(REFERENCE)
    assert [owned.name for owned in policy.slices] == ["ams-1", "ams-6"]
    assert len(policy.slices[1].ranges) == 63


def test_the_reference_is_sound_with_its_commented_keys() -> None:
    assert read_policy(with_commented_keys().encode()).slices[0].socket_ranges


@pytest.mark.parametrize("section", SECTIONS)
def test_the_reference_shows_exactly_the_keys_that_are_accepted(section: str) -> None:
    assert shown_keys(section) == accepted_keys(section)


def test_every_key_of_the_reference_is_explained() -> None:
    lines = REFERENCE.read_text().splitlines()
    for above, line in pairwise(lines):
        if re.match(r"#?[a-z_]+ = |\[", line) and above == "":
            pytest.fail(f"no comment above: {line}")
