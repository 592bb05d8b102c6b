"""Labs that exist, as small files below /run: who owns each, and with what it was made."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from nat_rewriter.errors import NatctlError

DIRECTORY = Path("/run/natctl-lab")


@dataclass(frozen=True, slots=True)
class Process:
    """A process that cannot be mistaken for a later one with the same id: ``start`` is its start time in ticks."""

    pid: int
    start: int

    @classmethod
    def current(cls) -> Process:
        """Return this process."""
        return cls(os.getpid(), start_time(os.getpid()) or 0)

    def alive(self) -> bool:
        """Tell whether the process still runs."""
        return start_time(self.pid) == self.start


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks after boot; None for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass(frozen=True, slots=True)
class LabState:
    """What is known of a lab. Without an owner it stays until it is taken down."""

    lab: str
    slices: list[str]
    clients: int
    owner: Process | None

    @property
    def abandoned(self) -> bool:
        """Whether the process it was made for has ended."""
        return self.owner is not None and not self.owner.alive()


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
