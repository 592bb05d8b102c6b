"""Options of apply that do not go together: refused with a reason, before anything is read or done."""

from __future__ import annotations

import pytest

from nat_rewriter.cli.main import run


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["--confirm", "5", "--drain", "5"],
            "--confirm and --drain do not go together: flows that were ended cannot be",
        ),
        (["--confirm", "5", "--sysctls"], "--confirm and --sysctls do not go together: only the table is taken back"),
        (["--dry-run", "--drain", "5"], "--dry-run and --drain do not go together: nothing is waited for"),
        (["--dry-run", "--sysctls"], "--dry-run and --sysctls do not go together: natctl doctor tells"),
        (["--confirm", "5", "--confirmed"], "--confirm and --confirmed do not go together"),
        (["--confirm", "5", "--drain", "5", "--sysctls"], "--confirm and --drain and --sysctls do not go together"),
    ],
)
def test_options_that_do_not_go_together(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["apply", "--config", "/nonexistent", *options]) == 2
    assert f"Error: {told}" in capsys.readouterr().err
