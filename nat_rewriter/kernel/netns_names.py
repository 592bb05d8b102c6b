"""What a network namespace is called in files that outlive processes."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from nat_rewriter.kernel.netns import NAMED_NAMESPACES

SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, since Linux 5.14
HOST = "host"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def name_of_current() -> str:
    """Return ``host``, ``netns-NAME`` as `ip netns` knows it, or ``net-INODE-COOKIE`` for a namespace without a name.

    Inode numbers are used again when a namespace ends; the cookie, where the kernel has it, is not until the next boot.
    """
    current = _identity(Path("/proc/thread-self/ns/net"))
    assert current is not None, "a thread can look at its own namespace"
    if current == _identity(Path("/proc/1/ns/net")):
        return HOST
    for name in sorted(os.listdir(NAMED_NAMESPACES)) if NAMED_NAMESPACES.is_dir() else ():
        if current == _identity(NAMED_NAMESPACES / name):
            return name_of(name)
    return f"net-{current[1]}-{_cookie()}"


def life_of_current() -> str | None:
    """Return what tells this namespace from all others that were and will be; None where the kernel does not say."""
    cookie = _cookie()
    return f"{_BOOT.read_text().strip()}/{cookie}" if cookie else None


def name_of(named: str) -> str:
    """Return what a namespace that `ip netns` knows by a name is called."""
    return f"netns-{named}"


def _identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a namespace; None where there is none, or it is not ours to see."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _cookie() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        try:
            (cookie,) = struct.unpack("Q", asker.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))
        except OSError:
            return 0
    return int(cookie)
