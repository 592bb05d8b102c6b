"""Labs that exist, as small files below /run: who owns each, and with what it was made; and who of them lives."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from nat_rewriter.errors import NatctlError

DIRECTORY = Path("/run/natctl-lab")


@dataclass(frozen=True, slots=True)
class Process:
    """A process that cannot be mistaken for a later one with the same id: ``start`` is its start time in ticks.

    Where nobody has noted that, each process of this id, here or in a pid namespace below, is taken for it.
    """

    pid: int
    start: int | None = None

    @classmethod
    def current(cls) -> Process:
        """Return this process."""
        return cls(os.getpid(), start_time(os.getpid()) or 0)

    def alive(self) -> bool:
        """Tell whether the process still runs."""
        return self.pid in _pids() if self.start is None else start_time(self.pid) == self.start


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks after boot; None for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _pids() -> set[int]:
    """Return the ids of all processes, as they are seen here and in the pid namespaces that they are in."""
    found: set[int] = set()
    for entry in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            lines = entry.read_text().splitlines()
            ids = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [entry.parent.name])
            found.update(map(int, ids))
    return found


def lock(path: Path) -> int:
    """Hold a file, directory or namespace until the descriptor that this returns is closed, or this process ends."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def is_locked(path: Path) -> bool:
    """Tell whether a process that lives holds it; nobody holds what is not there."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


@dataclass(frozen=True, slots=True)
class LabState:
    """What is known of a lab. Without an owner it stays until it is taken down."""

    lab: str
    slices: list[str]
    clients: int
    owner: Process | None


def write(state: LabState) -> None:
    """Record a lab; raise NatctlError when there is one of that name."""
    DIRECTORY.mkdir(mode=0o700, exist_ok=True)
    draft = DIRECTORY / f".{os.getpid()}-{state.lab}"
    draft.write_text(json.dumps(asdict(state)))
    try:
        os.link(draft, path_of(state.lab))  # whole or not at all, and never over another's
    except FileExistsError:
        raise NatctlError("make lab", "there is one of that name already, natctl lab down ends it", state.lab) from None
    finally:
        draft.unlink()


def read(lab: str) -> LabState | None:
    """Return what is recorded of a lab; None if nothing, or nothing readable."""
    try:
        fields = json.loads(path_of(lab).read_text())
        owner = fields.pop("owner")
        return LabState(owner=Process(**owner) if owner else None, **fields)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def forget(lab: str) -> None:
    """Remove the record of a lab; none is no error."""
    with contextlib.suppress(OSError):
        path_of(lab).unlink()


def names() -> Iterator[str]:
    """Yield the names of all labs that have a record."""
    if DIRECTORY.is_dir():
        yield from sorted(path.stem for path in DIRECTORY.glob("*.json"))


def path_of(lab: str) -> Path:
    """Return the file of a lab's record."""
    return DIRECTORY / f"{lab}.json"
