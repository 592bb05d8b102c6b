"""Records of leases that commands hold: a file each, locked by the process that holds the lease.

The lock goes with the process, however it ends, so that a record is stale exactly when nobody has it locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nat_rewriter.errors import LeaseError, StateError
from nat_rewriter.kernel.netns_names import name_of_current
from nat_rewriter.kernel.store import make_directory, remove_files, write_file

RUNTIME_VARIABLE = "NATCTL_RUNTIME_DIR"
_SYSTEM_DIRECTORY = Path("/run/natctl")
_ENDS_WITHIN_S = 10.0
_SUFFIX = ".json"


def lease_directory() -> Path:
    """Return where the leases of this network namespace are recorded.

    Below NATCTL_RUNTIME_DIR, else /run/natctl for root, else natctl in XDG_RUNTIME_DIR, else a directory in /tmp.
    """
    if chosen := os.environ.get(RUNTIME_VARIABLE):
        root = Path(chosen)
    elif os.geteuid() == 0:
        root = _SYSTEM_DIRECTORY
    elif runtime := os.environ.get("XDG_RUNTIME_DIR"):
        root = Path(runtime, "natctl")
    else:
        root = Path(f"/tmp/natctl-{os.geteuid()}")
    return root / "leases" / name_of_current()


@contextmanager
def recorded(fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Record a lease for the length of the block; yield its record, which has an ``id`` and a ``pid`` too."""
    directory = lease_directory()
    make_directory(directory)
    record = {"id": secrets.token_hex(4), **fields, "pid": os.getpid()}
    path = directory / f"{record['id']}{_SUFFIX}"
    lock = directory / f".{record['id']}.lock"
    with _locked(lock):
        try:
            write_file(path, json.dumps(record).encode())
            yield record
        finally:
            remove_files([path, lock])


def list_records() -> list[dict[str, Any]]:
    """Return the records of leases that are held, oldest first; those of dead holders are cleared away."""
    directory = lease_directory()
    found = []
    for path in sorted(directory.glob(f"*{_SUFFIX}")) if directory.is_dir() else ():
        if not _is_held(path):
            remove_files([path, _lock_of(path)])
        elif record := _read(path):
            found.append(record)
    return sorted(found, key=lambda record: str(record.get("since")))


def release(identity: str) -> None:
    """Have the holder of a lease release it, and return when it has. Raises LeaseError where there is none."""
    path = lease_directory() / f"{identity}{_SUFFIX}"
    record = next((each for each in list_records() if each["id"] == identity), None)
    if record is None:
        raise LeaseError("release lease", "none is held under that id, natctl lease list shows all", identity)
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(int(record["pid"]))
        try:
            if _is_held(path):  # so the process is still the one that wrote the record
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        except PermissionError:
            raise LeaseError("release lease", f"process {record['pid']} belongs to another user", identity) from None
        finally:
            os.close(descriptor)
    _wait_for_end(path, identity)


def _wait_for_end(path: Path, identity: str) -> None:
    deadline = time.monotonic() + _ENDS_WITHIN_S
    while _is_held(path):
        if time.monotonic() > deadline:
            raise LeaseError("release lease", f"its holder did not end within {_ENDS_WITHIN_S:g} s", identity)
        time.sleep(0.02)
    remove_files([path, _lock_of(path)])


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.stem}.lock")


def _is_held(path: Path) -> bool:
    """Tell whether a process has the lock of a record."""
    try:
        with _lock_of(path).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _read(path: Path) -> dict[str, Any] | None:
    """Return a record; None for one that has just gone, or is none."""
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return record if isinstance(record, dict) and {"id", "pid"} <= record.keys() else None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a record."""
    try:
        held = path.open("w")
        fcntl.flock(held, fcntl.LOCK_EX)
    except OSError as error:
        raise StateError("record lease", error.strerror or str(error), path) from None
    with held:
        yield
