"""Writes the completions of bash, zsh and fish, as click makes them; they ask natctl itself what may come next.

python3 packaging/completions.py DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete  # noqa: E402

from nat_rewriter.cli.main import natctl  # noqa: E402

# By the names under which the shells look for them.
SHELLS: dict[str, type[ShellComplete]] = {"natctl": BashComplete, "_natctl": ZshComplete, "natctl.fish": FishComplete}


def source_of(shell: type[ShellComplete]) -> str:
    """Return the text that a shell reads. Click's own way to it would first ask which bash is installed here."""
    complete = shell(natctl, {}, "natctl", "_NATCTL_COMPLETE")
    return str(complete.source_template % complete.source_vars())


def write_completions(directory: Path) -> None:
    """Write the three files."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, shell in SHELLS.items():
        (directory / name).write_text(source_of(shell), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: completions.py DIRECTORY")
    write_completions(Path(sys.argv[1]))
