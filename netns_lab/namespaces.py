"""Named network namespaces: made, found by prefix, and taken away with the processes inside them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from nat_rewriter.errors import KernelError, NatctlError, PermissionNeeded
from nat_rewriter.kernel.netns import CLONE_NEWNET, NAMED_NAMESPACES

PREFIX = "natctl-"
HOSTS = ("client", "egress", "server", "upstream")
FLEET_HOSTS = ("host1", "host2", "host3", "host4", "host5", "etcd1", "etcd2", "etcd3")
_NAME = re.compile(rf"{PREFIX}(?P<lab>.+)-(?:{'|'.join((*HOSTS, *FLEET_HOSTS))})")
_MS_BIND = 4096
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def namespace_name(lab: str, host: str) -> str:
    """Return the name of the namespace of one host of a lab."""
    return f"{PREFIX}{lab}-{host}"


def create(name: str) -> None:
    """Make an empty network namespace that stays until :func:`delete`, under a name that ``ip netns`` knows."""
    path = NAMED_NAMESPACES / name
    try:
        NAMED_NAMESPACES.mkdir(mode=0o755, exist_ok=True)
        path.touch(mode=0o444, exist_ok=False)
    except FileExistsError:
        raise NatctlError("create network namespace", "exists already", name) from None
    except PermissionError:
        raise PermissionNeeded(f"create network namespace {name}", "CAP_SYS_ADMIN") from None
    code = _pin_new_namespace(path)
    if code:
        path.unlink()
        raise KernelError("create network namespace", code, f"{os.strerror(code)}: {name!r}")


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
    end_processes(path)
    while _libc.umount2(bytes(path), _MNT_DETACH) == 0:
        pass
    path.unlink(missing_ok=True)


def list_labs() -> dict[str, list[str]]:
    """Return the ids of all labs that have a namespace here, each with its namespaces' names."""
    found: dict[str, list[str]] = {}
    names = sorted(os.listdir(NAMED_NAMESPACES)) if NAMED_NAMESPACES.is_dir() else []
    for name in names:
        if match := _NAME.fullmatch(name):
            found.setdefault(match["lab"], []).append(name)
    return found


def end_processes(path: Path, patience_s: float = 1.0) -> None:
    """Terminate, then kill, every other process whose network namespace is the one at ``path``."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        pids = list(_pids_inside(path))
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while pids and time.monotonic() < deadline and any(_pids_inside(path)):
            time.sleep(0.01)


def _pids_inside(path: Path) -> Iterator[int]:
    try:
        wanted = path.stat()
    except OSError:
        return
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            found = os.stat(f"/proc/{entry}/ns/net")
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                yield int(entry)
