"""Network namespaces of this process: entering one for good, or for a while."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nat_rewriter.errors import KernelError, NamespaceMissing, NatctlError, PermissionNeeded

CLONE_NEWNET = 0x40000000
NAMED_NAMESPACES = Path("/run/netns")
_libc = ctypes.CDLL(None, use_errno=True)


def namespace_path(name: str) -> Path:
    """Return the path of a namespace given as a name under /run/netns or as a path of its own."""
    return Path(name) if "/" in name else NAMED_NAMESPACES / name


def enter(name: str) -> None:
    """Move the calling thread into a network namespace: setns(2)."""
    path = namespace_path(name)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NamespaceMissing(name) from None
    except PermissionError:
        raise PermissionNeeded(f"enter network namespace {name}", "CAP_SYS_ADMIN") from None
    except OSError as error:
        raise NatctlError("enter network namespace", error.strerror or "cannot be opened", name) from None
    try:
        _setns(descriptor, name)
    finally:
        os.close(descriptor)


@contextmanager
def entered(name: str | None) -> Iterator[None]:
    """Be in a network namespace, in this thread, until the block ends. None stays where it is."""
    if name is None:
        yield
        return
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(name)
        try:
            yield
        finally:
            _setns(before, "the one before")
    finally:
        os.close(before)


def _setns(descriptor: int, name: str) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EPERM:
        raise PermissionNeeded(f"enter network namespace {name}", "CAP_SYS_ADMIN")
    if code == errno.EINVAL:
        raise NatctlError("enter network namespace", "is not a network namespace", name)
    raise KernelError("enter network namespace", code, f"{os.strerror(code)}: {name!r}")
