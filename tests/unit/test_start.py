"""When a look begins before the command line is read: only where it is plain that everything is to be looked at."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nat_rewriter.cli.start import looks_at_everything


@pytest.mark.parametrize(
    "line",
    [
        "check",
        "check --json -q",
        "check --config /etc/natctl/natctl.toml",
        "check --config=- --pressure 0.5",
        "check --heal --dry-run --state /var/lib/natctl",
        "check --config --help",
    ],
)
def test_a_whole_check_begins_early(line: str) -> None:
    assert looks_at_everything(line.split())


@pytest.mark.parametrize(
    "line",
    [
        "",
        "watch",
        "--help check",
        "check --help",
        "check --only port-leaked",
        "check --netns blue",
        "check --netns=blue",
        "check extra",
        "check --unknown",
        "check -- --json",
    ],
)
def test_nothing_begins_early_where_a_look_may_be_another_or_none(line: str) -> None:
    assert not looks_at_everything(line.split())


def test_what_begins_early_needs_little() -> None:
    ask = "import sys, nat_rewriter.cli.start, nat_rewriter.kernel.head_start; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-IS", "-c", f"import sys; sys.path = {sys.path}; {ask}"],
                                capture_output=True, text=True, check=True).stdout.split())  # fmt: skip
    assert "nat_rewriter.kernel._core._native" in loaded
    assert not loaded & {"click", "numpy", "dataclasses", "inspect", "logging", "ipaddress", "tomllib", "rich"}
