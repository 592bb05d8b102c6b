"""Scratch directories of labs: their configurations, and the files of what runs in them."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from netns_lab import namespaces
from netns_lab.state import is_locked, lock

_NAME = re.compile(rf"natctl-(?:lab|fleet)-(?P<lab>{namespaces.UNIQUE})-[a-z0-9_]{{8}}")


@contextmanager
def scratch_directory(lab: str, kind: str = "lab") -> Iterator[Path]:
    """Make a directory, and take it away. Its name tells of this process, though the lab may have another's name."""
    process = namespaces.maker(lab)
    name = lab if process and process.pid == os.getpid() else namespaces.unique_name(lab)
    with tempfile.TemporaryDirectory(prefix=f"natctl-{kind}-{name}-") as directory:
        descriptor = lock(Path(directory))
        try:
            yield Path(directory)
        finally:
            os.close(descriptor)


def list_leftovers() -> dict[str, list[Path]]:
    """Return the directories of this user's processes that have ended, by the unique name of what they were for."""
    found: dict[str, list[Path]] = {}
    for path in sorted(Path(tempfile.gettempdir()).glob("natctl-*")):
        match = _NAME.fullmatch(path.name)
        if match and _is_ours(path):
            found.setdefault(match["lab"], []).append(path)
    return {lab: paths for lab, paths in found.items() if not _in_use(lab, paths)}


def _is_ours(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.geteuid()
    except FileNotFoundError:  # its process has just taken it away
        return False


def _in_use(lab: str, paths: list[Path]) -> bool:
    process = namespaces.maker(lab)
    return (process is not None and process.alive()) or any(map(is_locked, paths))


def remove_leftovers(lab: str) -> None:
    """Remove what ended processes have left for a lab; nothing there is no error."""
    for path in list_leftovers().get(lab, ()):
        shutil.rmtree(path, ignore_errors=True)
