"""Labs that stay after the command that made them: by root under /run, by anyone else inside a holder process.

The namespaces of an ordinary user's lab live as long as a process is in them. The holder is that process: it sleeps,
and a record in a directory of the user's own says which one it is. Other commands join its namespaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from nat_rewriter.errors import KernelError, NatctlError
from netns_lab import namespaces, scratch, state
from netns_lab.enter import enter, missing_privilege
from netns_lab.lab import Lab, checked_name, list_all, list_leftovers, owner, take_down
from netns_lab.state import Process

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Standing:
    """A lab that exists: its name, and the living process that it belongs to, if any."""

    name: str
    owner: Process | None


def up(lab: Lab) -> None:
    """Make a lab that stays until :func:`down`."""
    if missing_privilege() is None:
        lab.make(owner=None)
        return
    with _records() as directory:
        record = _open_record(directory, lab.name)
        try:
            enter()
            lab.make(owner=None)
            os.write(record, json.dumps(asdict(_start_holder())).encode())
        except BaseException:
            os.unlink(_file(lab.name), dir_fd=directory)
            raise
        finally:
            os.close(record)


def join(name: str) -> None:
    """Move this process to where the namespaces of a lab have their names; NatctlError if there is no such lab."""
    if missing_privilege() is None:
        if name not in namespaces.list_labs():
            raise _missing(name)
        return
    with _records() as directory:
        holder = _holder(directory, name)
    if holder is None or not holder.alive():
        raise _missing(name)
    _join_namespaces(holder)


def down(name: str) -> None:
    """Take a lab away, whoever made it; NatctlError if there is none."""
    if missing_privilege() is None:
        if name not in list_all():
            raise _missing(name)
        take_down(name)
        return
    with _records() as directory:
        holder = _holder(directory, name)
        if holder is None:
            _remove_leftovers(name)
            return
        if holder.alive():
            _end_holder(holder, name)
        os.unlink(_file(name), dir_fd=directory)


def list_removable(*, force: bool = False) -> list[str]:
    """Return the labs that ``down --all`` takes away: those that nobody uses, or all with force."""
    if missing_privilege() is None:
        return list_leftovers(force=force)
    return [standing.name for standing in list_standing() if force or not _is_joined(standing.owner)]


def list_standing() -> list[Standing]:
    """Return all labs of this user, leftovers included."""
    if missing_privilege() is None:
        return [Standing(name, owner(name)) for name in list_all()]
    with _records() as directory:
        names = sorted(name.removesuffix(".json") for name in os.listdir(directory) if name.endswith(".json"))
        held = [Standing(name, _holder(directory, name)) for name in names]
    return [*held, *(Standing(name, namespaces.maker(name)) for name in scratch.list_leftovers() if name not in names)]


def _is_joined(holder: Process | None) -> bool:
    """Tell whether somebody else is where a process that lives holds the namespaces of a lab."""
    if holder is None or not holder.alive():
        return False
    return any(pid != holder.pid for pid in namespaces.processes_in(Path(f"/proc/{holder.pid}/ns/mnt"), "mnt"))


def _start_holder() -> Process:
    """Fork the process that keeps the namespaces; it lets go of the terminal and waits for its end."""
    pid = os.fork()
    if pid:
        return Process(pid, state.start_time(pid) or 0)
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.closerange(3, 1024)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            signal.pause()
    os._exit(0)


def _end_holder(holder: Process, name: str) -> None:
    """End what runs in the lab, then the holder: with it, the kernel takes the namespaces away."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(NatctlError, OSError):
            _join_namespaces(holder)
            take_down(name)
        os._exit(0)
    os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.kill(holder.pid, signal.SIGKILL)
    while holder.alive():
        time.sleep(0.005)


def _remove_leftovers(name: str) -> None:
    """Remove what a killed scenario has left outside of its namespaces, which have ended with it."""
    if name not in scratch.list_leftovers():
        raise _missing(name)
    scratch.remove_leftovers(name)


def _join_namespaces(holder: Process) -> None:
    directory = Path.cwd()
    descriptors = [
        os.open(f"/proc/{holder.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("user", "mnt", "net")
    ]
    for descriptor in descriptors:  # the user namespace first: it gives the right to the others
        if _libc.setns(descriptor, 0) != 0:
            code = ctypes.get_errno()
            raise KernelError("join lab", code, f"{os.strerror(code)}: {holder.pid}")
        os.close(descriptor)
    os.chdir(directory)


@contextmanager
def _records() -> Iterator[int]:
    """Open the directory of this user's records; it stays reachable by its descriptor when /run is covered."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(runtime, "natctl-lab") if runtime else Path(f"/tmp/natctl-lab-{os.geteuid()}")
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise NatctlError("find labs", "directory belongs to, or is open to, another user", path)
        yield descriptor
    finally:
        os.close(descriptor)


def _open_record(directory: int, name: str) -> int:
    holder = _holder(directory, name)
    if holder is not None and not holder.alive():
        os.unlink(_file(name), dir_fd=directory)
    try:
        return os.open(_file(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except FileExistsError:
        raise NatctlError("make lab", "there is one of that name already, natctl lab down ends it", name) from None


def _holder(directory: int, name: str) -> Process | None:
    """Return the recorded holder of a lab; one that cannot be alive for a record that is not finished."""
    try:
        descriptor = os.open(_file(name), os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    with open(descriptor) as file:
        try:
            return Process(**json.load(file))
        except (ValueError, TypeError):
            return Process(0, 0)


def _file(name: str) -> str:
    return f"{checked_name(name)}.json"


def _missing(name: str) -> NatctlError:
    return NatctlError("find lab", "there is none of that name, natctl lab up makes one", name)
