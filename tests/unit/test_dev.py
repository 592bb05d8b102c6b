"""The script ./dev, as far as it can be tried without setting anything up."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

DEV = Path(__file__).parents[2] / "dev"
COMMANDS = ("demo", "test", "lint", "bench", "shell")


def dev(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([DEV, *words], capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize("word", ["help", "-h", "--help"])
def test_help_names_every_command(word: str) -> None:
    done = dev(word)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"\n  {command} " in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("words", [(), ("nosuch",)])
def test_anything_else_is_a_usage_error(words: tuple[str, ...]) -> None:
    done = dev(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ./dev COMMAND")


def test_a_measurement_that_does_not_exist_is_refused_before_any_set_up() -> None:
    done = dev("bench", "nosuch")
    assert done.returncode == 2
    assert done.stderr == "dev: no such measurement: 'nosuch', expected a name that ./dev bench lists\n"
