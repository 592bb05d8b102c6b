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
        (["--confirmed", "--rollback", "7"], "--confirmed and --rollback do not go together"),
        (["--table", "egress"], "--table is for --confirmed and --rollback: a configuration names its own"),
        (["--confirm", "5", "--drain", "5", "--sysctls"], "--confirm and --drain and --sysctls do not go together"),
    ],
)
def test_options_that_do_not_go_together(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["apply", "--config", "/nonexistent", *options]) == 2
    assert f"Error: {told}" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--confirm", "--drain", "--wait"])
@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "1e9", "soon"])
def test_times_that_nobody_can_wait_for(option: str, seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["apply", "--config", "/nonexistent", f"{option}={seconds}"]) == 2
    assert f"Invalid value for '{option}'" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["log"], ["apply", "--rollback"]])
@pytest.mark.parametrize("table", ["../..", "", "a b", "drop"])
def test_tables_that_cannot_be(command: list[str], table: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--config", "/nonexistent", f"--table={table}"]) == 2
    assert f"Invalid value for '--table': {table!r}: expected " in capsys.readouterr().err
