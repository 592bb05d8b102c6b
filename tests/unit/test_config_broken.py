"""Each file under broken/ says in its first lines which problems it has: ``# expect: PATH | part of the text``."""

from __future__ import annotations

from pathlib import Path

import pytest

from nat_rewriter.config import read_policy
from nat_rewriter.errors import EXIT_USAGE, ConfigError

BROKEN = sorted((Path(__file__).parent / "broken").glob("*.toml"))


def expectations(path: Path) -> list[tuple[str, str]]:
    marked = [
        line.removeprefix("# expect: ") for line in path.read_text().splitlines() if line.startswith("# expect: ")
    ]
    pairs = [line.split(" | ", 1) for line in marked]
    return [(key_path, part) for key_path, part in pairs]


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_a_broken_file_has_exactly_the_problems_it_names(path: Path) -> None:
    expected = expectations(path)
    with pytest.raises(ConfigError) as caught:
        read_policy(path)
    error = caught.value
    assert error.exit_code == EXIT_USAGE
    assert sorted(problem.path for problem in error.problems) == sorted(key_path for key_path, _ in expected), str(
        error
    )
    for key_path, part in expected:
        assert any(part in str(problem) for problem in error.problems if problem.path == key_path), str(error)
    for problem in error.problems:
        assert problem.file == str(path)
        assert problem.expected.startswith("expected ")
        assert str(problem).isprintable()


def test_there_are_broken_files() -> None:
    assert len(BROKEN) >= 45
