"""docs/lab.md lists every scenario, under the heading that ``natctl lab run --list`` gives it."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from nat_rewriter.cli.main import natctl

TEXT = Path(__file__, "../../../docs/lab.md").resolve().read_text(encoding="utf-8")


def test_scenarios_are_listed_as_the_command_does() -> None:
    listed = CliRunner().invoke(natctl, ["lab", "run", "--list"]).output
    assert listed.count("\n") > 30
    assert f"```\n{listed}```\n" in TEXT
