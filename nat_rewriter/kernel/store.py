"""Files that natctl keeps: each written whole or not at all, and still there after a crash of the host."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nat_rewriter.errors import StateError

STATE_VARIABLE = "NATCTL_STATE_DIR"
SYSTEM_DIRECTORY = Path("/var/lib/natctl")
DRAFT_AGE_S = 3600.0  # no writer takes that long
_WRITE, _READ = "write state", "read state"


def default_directory() -> Path:
    """Return where natctl keeps its files: NATCTL_STATE_DIR, else the system's place for root, else the user's own."""
    if chosen := os.environ.get(STATE_VARIABLE):
        return Path(chosen)
    if os.geteuid() == 0 and os.access(_nearest(SYSTEM_DIRECTORY), os.W_OK):
        return SYSTEM_DIRECTORY
    return Path(os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()) / "natctl"


def make_directory(path: Path) -> None:
    """Make a directory that only this user can look into, and those above it; one that is there is no error."""
    with _told(_WRITE, path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)


def write_file(path: Path, content: bytes, *, lasting: bool = True) -> None:
    """Replace a file: whoever reads it finds the old content or the new one; if ``lasting``, after a crash as well."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with _told(_WRITE, path):
        try:
            _write(draft, content, through=lasting)
            os.replace(draft, path)
            if lasting:
                _sync(path.parent, os.O_RDONLY | os.O_DIRECTORY)  # the new name, not only the content
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def make_lasting(directory: Path, names: Iterable[str]) -> None:
    """Let files of a directory that are there outlast a crash of the host."""
    with _told(_WRITE, directory):
        for name in names:
            _sync(directory / name, os.O_RDONLY)
        _sync(directory, os.O_RDONLY | os.O_DIRECTORY)


def read_file(path: Path) -> bytes | None:
    """Return the content of a file, None where there is none."""
    with _told(_READ, path):
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None


def list_names(directory: Path) -> list[str]:
    """Return the names in a directory, sorted; none where there is no such directory."""
    with _told(_READ, directory):
        try:
            return sorted(os.listdir(directory))
        except (FileNotFoundError, NotADirectoryError):
            return []


def remove_files(paths: Iterable[Path]) -> None:
    """Remove files; one that is gone already is no error."""
    for path in paths:
        with _told(_WRITE, path), contextlib.suppress(FileNotFoundError):
            path.unlink()


def remove_drafts(directory: Path) -> None:
    """Remove what writers that were killed left in a directory."""
    old = time.time() - DRAFT_AGE_S
    with _told(_WRITE, directory), contextlib.suppress(FileNotFoundError):
        remove_files(path for path in directory.glob(".*") if path.stat().st_mtime < old)


def _write(path: Path, content: bytes, *, through: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        if through:
            os.fsync(descriptor)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _nearest(path: Path) -> Path:
    """Return the path, or the nearest directory above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


@contextmanager
def _told(operation: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateError(operation, error.strerror or str(error), path) from None
