"""The directory of a history: which parts there are, who writes, and what is to be deleted."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from nat_rewriter.errors import LockHeld, StateError
from nat_rewriter.history.parts import DRAFT, READ, told

MARKER = "natctl-history"
_NAME = re.compile(r"(\d{8})\.(?:live|(\d{8}T\d{6})Z-(\d{8}T\d{6})Z\.flows)")
_MOMENT = "%Y%m%dT%H%M%S"
_DIGITS = ((0, 4), (4, 6), (6, 8), (9, 11), (11, 13), (13, 15))
_SECOND = 1_000_000_000
_LOCK = struct.Struct("hhqqi4x")  # struct flock
_WRITE = "record history"


@dataclass(frozen=True, slots=True)
class Part:
    """A file of a history; the flows of a sealed one began at ``low_ns`` or later and ended by ``high_ns``."""

    path: Path
    number: int
    low_ns: int = 0
    high_ns: int = 1 << 63

    @property
    def live(self) -> bool:
        """Whether it is not sealed yet."""
        return self.path.suffix == ".live"

    def overlaps(self, since_ns: int, until_ns: int) -> bool:
        """Tell whether it may have flows of that time."""
        return self.low_ns <= until_ns and since_ns <= self.high_ns


def list_parts(directory: Path) -> list[Part]:
    """Return the parts in the order of time. Of a part that is there live and sealed, the sealed one counts."""
    with told(READ, directory):
        names = os.listdir(directory)
    found: dict[int, Part] = {}
    for name in sorted(names):
        if match := _NAME.fullmatch(name):
            with told(READ, directory / name):
                part = _part(directory / name, *match.groups())
            if part.number not in found or not part.live:
                found[part.number] = part
    return [found[number] for number in sorted(found)]


def live_path(directory: Path, number: int) -> Path:
    """Return the name of a live part."""
    return directory / f"{number:08d}.live"


def sealed_path(live: Path, low_ns: int, high_ns: int) -> Path:
    """Return the name of what a live part becomes."""
    low, high = (
        datetime.fromtimestamp(ns, UTC).strftime(_MOMENT) for ns in (low_ns // _SECOND, high_ns // _SECOND + 1)
    )
    return live.with_name(f"{live.stem}.{low}Z-{high}Z.flows")


def remove_part(path: Path) -> None:
    """Delete a part, with what SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm"):
        with told(_WRITE, path), contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}{suffix}")


def remove_drafts(directory: Path) -> None:
    """Delete what was not whole when its writer was killed."""
    with told(_WRITE, directory):
        for path in directory.glob(f"*{DRAFT}*"):
            path.unlink(missing_ok=True)


def expired(
    parts: Sequence[Part], sizes: Sequence[int], now_ns: int, keep_ns: int | None, keep_bytes: int | None
) -> list[Part]:
    """Return the sealed parts, oldest first, that are too old, or too much."""
    found, total = [], sum(sizes)
    for part, size in zip(parts, sizes, strict=True):
        old = keep_ns is not None and part.high_ns < now_ns - keep_ns
        much = keep_bytes is not None and total > keep_bytes
        if part.live or not (old or much):
            continue
        found.append(part)
        total -= size
    return found


def size_of(part: Part) -> int:
    """Return how much room a part takes."""
    total = 0
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            total += os.stat(f"{part.path}{suffix}").st_blocks * 512
    return total


class WriterLock:
    """The right to write a history, which is made if need be: held until closed, or the process ends.

    Raises StateError, LockHeld.
    """

    def __init__(self, directory: Path) -> None:
        with told(_WRITE, directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (directory / MARKER).exists() and os.listdir(directory):
                raise StateError(_WRITE, "not a history, expected an empty or a new directory", directory)
            self._descriptor = os.open(directory / MARKER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except OSError:
            os.close(self._descriptor)
            raise LockHeld(_WRITE, "another natctl writes it", directory) from None

    def close(self) -> None:
        """Let others write."""
        os.close(self._descriptor)


def is_written(directory: Path) -> bool:
    """Tell whether a recorder is at work. Raises StateError where there is no history."""
    try:
        descriptor = os.open(directory / MARKER, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        reason = "there is none, expected a directory that natctl watch --record has written"
        raise StateError(READ, reason, directory) from None
    except OSError as error:
        raise StateError(READ, (error.strerror or str(error)).lower(), directory) from None
    try:
        asked = _LOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
        return _LOCK.unpack(answer)[0] != fcntl.F_UNLCK  # type: ignore[no-any-return]
    finally:
        os.close(descriptor)


def _part(path: Path, number: str, low: str | None, high: str | None) -> Part:
    if low is None or high is None:
        return Part(path, int(number))
    return Part(path, int(number), _moment_ns(low), _moment_ns(high))


def _moment_ns(text: str) -> int:
    # Not strptime: there may be thousands of parts.
    year, month, day, hour, minute, second = (int(text[at:to]) for at, to in _DIGITS)
    return int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()) * _SECOND
