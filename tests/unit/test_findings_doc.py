"""docs/findings.md has every kind, with an example that the code would print."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nat_rewriter.model.findings import Kind

TEXT = Path(__file__, "../../../docs/findings.md").resolve().read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([\w-]+)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))


def test_kinds_are_in_the_order_of_the_contract() -> None:
    assert list(SECTIONS) == [kind.value for kind in Kind]


@pytest.mark.parametrize("kind", Kind)
def test_example(kind: Kind) -> None:
    section = SECTIONS[kind.value]
    example = json.loads(re.findall(r"```json\n(.*?)```", section, re.DOTALL)[0])
    assert (example["kind"], example["severity"], example["state"]) == (kind.value, kind.severity.value, "open")
    assert f"*{kind.severity.value}.*" in section
    assert "**Remedy.**" in section
    assert example["message"].endswith(".")
    assert example["remedy"].endswith(".")
