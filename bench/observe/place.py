"""Where it is measured: a network namespace of its own, with room in the conntrack table, and a little priority."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_MOST_ENTRIES = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_PRIORITY = Path("/proc/self/autogroup")
SOURCES = Path(__file__).parent / "native"


class NotHere(Exception):
    """It cannot be measured here; says why."""


@dataclass(frozen=True, slots=True)
class Programs:
    """What is compiled for the measurement."""

    flood: str
    listen: str


@contextmanager
def measuring_place(entries: int) -> Iterator[Programs]:
    """Be in a fresh network namespace whose table holds so many entries; leave everything else as it was."""
    if os.geteuid() != 0:
        raise NotHere("only root can raise nf_conntrack_max, which a million entries need: run it as root")
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    with tempfile.TemporaryDirectory() as directory, _raised(entries), _preferred():
        programs = Programs(*(_compiled(name, Path(directory)) for name in ("flood", "listen")))
        if libc.unshare(_CLONE_NEWNET) != 0:
            raise NotHere(f"no network namespace of its own: {os.strerror(ctypes.get_errno())}")
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield programs
        finally:
            libc.setns(before, _CLONE_NEWNET)
            os.close(before)


@contextmanager
def _raised(entries: int) -> Iterator[None]:
    """Make room for entries: the bound is that of the initial namespace, for all."""
    if not _MOST_ENTRIES.exists():
        raise NotHere("conntrack is not loaded: modprobe nf_conntrack")
    before = _MOST_ENTRIES.read_text()
    if int(before) >= 2 * entries:
        yield
        return
    with _MOST_ENTRIES.open("r+") as setting:
        try:
            setting.write(str(2 * entries))
            setting.flush()
        except OSError as error:
            raise NotHere(f"nf_conntrack_max is {before.strip()} and cannot be raised: {error.strerror}") from None
    try:
        yield
    finally:
        _MOST_ENTRIES.write_text(before)


@contextmanager
def _preferred() -> Iterator[None]:
    """Go before what else runs, a little: by nice, and by that of the session where sessions are scheduled."""
    os.nice(-5)
    before = _PRIORITY.read_text().split()[-1] if _PRIORITY.exists() else None
    if before is None:
        yield
        return
    with contextlib.suppress(OSError):
        _PRIORITY.write_text("-5")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            _PRIORITY.write_text(before)


def _compiled(name: str, directory: Path) -> str:
    program = directory / name
    command = ["cc", "-O2", "-std=gnu11", "-o", str(program), str(SOURCES / f"{name}.c")]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotHere(f"a C compiler is needed: {error}") from None
    return str(program)
