"""A place where labs can be made: here when that is permitted, otherwise in namespaces of one's own.

``python -m netns_lab.enter -- COMMAND…`` runs a command there. As root nothing changes; for anyone else the command
runs in a new user, mount and network namespace, where it has all rights over what it makes, and none outside. Its
``/run`` is empty, so that the names it gives to network namespaces are its own, and it reaches itself over ``lo``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from nat_rewriter.errors import EXIT_NOT_HERE, EXIT_USAGE, NatctlError, UnsupportedFeature
from nat_rewriter.kernel.netns import CLONE_NEWNET, NAMED_NAMESPACES

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21}
_FEATURE = "lab without root"
_libc = ctypes.CDLL(None, use_errno=True)

# Sysctls that forbid user namespaces: path, the value that forbids, what to set instead. Which exist depends on the
# distribution.
_FORBIDDING = (
    ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces above 0"),
    ("kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
)


def missing_privilege() -> str | None:
    """Return what this process lacks to make labs right here; None when it lacks nothing."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    effective = int(status["CapEff"], 16)
    for name, bit in _CAPABILITIES.items():
        if not effective >> bit & 1:
            return name
    place = NAMED_NAMESPACES if NAMED_NAMESPACES.is_dir() else NAMED_NAMESPACES.parent
    return None if os.access(place, os.W_OK) else f"write permission for {place}"


def enter_if_needed() -> None:
    """Move this process to where labs can be made; it must have one thread only. UnsupportedFeature when forbidden."""
    if missing_privilege() is not None:
        enter()


def enter() -> None:
    """Move this process into a user, mount and network namespace of its own, as root there."""
    uid, gid = os.geteuid(), os.getegid()
    if _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS | CLONE_NEWNET) != 0:
        raise _forbidden("create a user namespace", ctypes.get_errno())
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except OSError as error:
        raise _forbidden("map the user", error.errno or 0) from None
    _mount("make mounts private", None, b"/", None, _MS_REC_PRIVATE)
    _mount("mount an empty /run", b"tmpfs", bytes(NAMED_NAMESPACES.parent), b"tmpfs", 0)
    NAMED_NAMESPACES.mkdir(mode=0o755)
    _set_up_loopback()


def _mount(doing: str, source: bytes | None, target: bytes, kind: bytes | None, flags: int) -> None:
    if _libc.mount(source, target, kind, flags, None) != 0:
        raise _forbidden(doing, ctypes.get_errno())


def _set_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        fcntl.ioctl(asker, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))


def _forbidden(doing: str, code: int) -> UnsupportedFeature:
    """Return the error that names what stands in the way, as far as the system tells."""
    for name, forbids, needs in _FORBIDDING:
        path = Path("/proc/sys", name)
        if path.exists() and path.read_text().strip() == forbids:
            return UnsupportedFeature(_FEATURE, needs, f"{name.replace('/', '.')}={forbids}")
    found = f"{errno.errorcode.get(code, code)} on the attempt to {doing}"
    if code in (errno.EINVAL, errno.ENOSYS):
        return UnsupportedFeature(_FEATURE, "a kernel with CONFIG_USER_NS", found)
    return UnsupportedFeature(_FEATURE, "root, or a system or container that permits user namespaces", found)


def main(arguments: Sequence[str]) -> None:
    """Run ``-- COMMAND…`` where labs can be made, in place of this process."""
    command = list(arguments[1:] if arguments[:1] == ["--"] else arguments)
    if not command:
        sys.exit(_complain("usage: python -m netns_lab.enter -- COMMAND...", EXIT_USAGE))
    try:
        enter_if_needed()
        os.execvp(command[0], command)
    except NatctlError as error:
        sys.exit(_complain(f"natctl: {error}", error.exit_code))
    except OSError as error:
        sys.exit(_complain(f"natctl: run: {error.strerror}: {command[0]!r}", EXIT_NOT_HERE))


def _complain(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


if __name__ == "__main__":
    main(sys.argv[1:])
