"""Named network namespaces of labs and tests: made, found by name, and taken away with the processes inside them.

One is called ``natctl-LAB`` or ``natctl-LAB-HOST``. Who needs no name that is known beforehand calls the lab
``[KIND-]PID-RANDOM``, so that what a killed process leaves tells whose it was. While its maker lives a namespace is
locked as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from nat_rewriter.errors import KernelError, NatctlError, PermissionNeeded
from nat_rewriter.kernel.netns import CLONE_NEWNET, NAMED_NAMESPACES
from netns_lab.state import Process, is_locked, lock

PREFIX = "natctl-"
HOSTS = ("client", "egress", "server", "upstream")
FLEET_HOSTS = ("host1", "host2", "host3", "host4", "host5", "etcd1", "etcd2", "etcd3")
UNIQUE = r"(?:[^/]+?-)?(?P<pid>[0-9]+)-[0-9a-f]{6}"
_UNIQUE = re.compile(UNIQUE)
_NAMES = (
    re.compile(rf"{PREFIX}(?P<lab>{UNIQUE})(?:-[^/]+)?"),
    re.compile(rf"{PREFIX}(?P<lab>.+)-(?:{'|'.join((*HOSTS, *FLEET_HOSTS))})"),
)
_MS_BIND, _MS_REC, _MS_SHARED = 4096, 16384, 1 << 20
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)
_locks: dict[str, int] = {}


def unique_name(kind: str = "") -> str:
    """Return a name for a lab that no other has: of this process, and by chance."""
    return f"{kind}-{os.getpid()}-{secrets.token_hex(3)}".removeprefix("-")


def maker(lab: str) -> Process | None:
    """Return the process that a unique name tells of; None for a name that somebody chose."""
    match = _UNIQUE.fullmatch(lab)
    return Process(int(match["pid"])) if match else None


def namespace_name(lab: str, host: str = "") -> str:
    """Return the name of the namespace of one host of a lab, or of a lab that is one namespace."""
    return f"{PREFIX}{lab}-{host}".removesuffix("-")


def create(name: str) -> None:
    """Make an empty network namespace that stays until :func:`delete`, under a name that ``ip netns`` knows.

    It is locked until then, or until this process ends.
    """
    path = NAMED_NAMESPACES / name
    try:
        NAMED_NAMESPACES.mkdir(mode=0o755, exist_ok=True)
        _share_directory()
        path.touch(mode=0o444, exist_ok=False)
    except FileExistsError:
        raise NatctlError("create network namespace", "exists already", name) from None
    except PermissionError:
        raise PermissionNeeded(f"create network namespace {name}", "CAP_SYS_ADMIN") from None
    code = _pin_new_namespace(path)
    if code:
        path.unlink()
        raise KernelError("create network namespace", code, f"{os.strerror(code)}: {name!r}")
    _locks[name] = lock(path)


def _share_directory() -> None:
    """Make the directory a shared mount as ip(8) does before it adds a name: done later, it would bury our mounts.

    Failing is no error: what matters then fails with a reason.
    """
    directory = bytes(NAMED_NAMESPACES)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # ip(8) does that too
        if _libc.mount(b"", directory, b"none", _MS_SHARED | _MS_REC, None) != 0:
            _libc.mount(directory, directory, b"none", _MS_BIND | _MS_REC, None)
            _libc.mount(b"", directory, b"none", _MS_SHARED | _MS_REC, None)
    finally:
        os.close(descriptor)


def _pin_new_namespace(path: Path) -> int:
    """Bind a new network namespace to a file; return 0 or the errno.

    unshare(2) moves one thread, so that a thread of its own does it and ends: the caller stays where it is.
    """
    failed = [0]

    def pin() -> None:
        source = b"/proc/thread-self/ns/net"
        done = _libc.unshare(CLONE_NEWNET) == 0 and _libc.mount(source, bytes(path), b"none", _MS_BIND, None) == 0
        failed[0] = 0 if done else ctypes.get_errno()

    thread = threading.Thread(target=pin)
    thread.start()
    thread.join()
    return failed[0]


def delete(name: str) -> None:
    """End the processes in a namespace and take away its name; one that is gone already is no error."""
    path = NAMED_NAMESPACES / name
    if name in _locks:
        os.close(_locks.pop(name))
    end_processes(path)
    while _libc.umount2(bytes(path), _MNT_DETACH) == 0:
        pass
    path.unlink(missing_ok=True)


def list_labs() -> dict[str, list[str]]:
    """Return the names of all labs that have a namespace here, each with its namespaces' names."""
    found: dict[str, list[str]] = {}
    names = sorted(os.listdir(NAMED_NAMESPACES)) if NAMED_NAMESPACES.is_dir() else []
    for name in names:
        if lab := _lab_of(name):
            found.setdefault(lab, []).append(name)
    return found


def _lab_of(name: str) -> str | None:
    matches = (pattern.fullmatch(name) for pattern in _NAMES)
    return next((match["lab"] for match in matches if match), None)


def inhabited(lab: str) -> bool:
    """Tell whether a process is in a namespace of a lab."""
    return any(pid for name in list_labs().get(lab, ()) for pid in processes_in(NAMED_NAMESPACES / name))


def held(lab: str) -> bool:
    """Tell whether a process that lives, in whatever pid namespace, has made a namespace of a lab."""
    return any(is_locked(NAMED_NAMESPACES / name) for name in list_labs().get(lab, ()))


def end_processes(path: Path, patience_s: float = 1.0) -> None:
    """Terminate, then kill, every other process whose network namespace is the one at ``path``."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        pids = list(processes_in(path))
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while pids and time.monotonic() < deadline and any(processes_in(path)):
            time.sleep(0.01)


def processes_in(path: Path, kind: str = "net") -> Iterator[int]:
    """Yield the ids of the other processes whose namespace of a kind is the one at ``path``."""
    try:
        wanted = path.stat()
    except OSError:
        return
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            found = os.stat(f"/proc/{entry}/ns/{kind}")
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                yield int(entry)
