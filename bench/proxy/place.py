"""Where it is measured: a network namespace with everything on one device, and processes that go before others."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.proxy.engines import PORT, SERVER, SOFT

_CLONE_NEWNET = 0x40000000
_PRIORITY = Path("/proc/self/autogroup")
SOURCE = Path(__file__).parent / "native" / "load.c"
SERVERS = tuple(f"203.0.113.{last}" for last in range(1, 11))


@contextmanager
def measuring_place() -> Iterator[tuple[str, Path, int]]:
    """Be in a namespace with a server; yield the load generator, a directory, and the process of the server."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    with tempfile.TemporaryDirectory() as name, _preferred():
        load = str(Path(name, "load"))
        subprocess.run(["cc", "-O2", "-o", load, str(SOURCE)], check=True)
        if libc.unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "no network namespace of its own")
        try:
            _wire()
            with subprocess.Popen([load, "server", str(PORT)], stdout=subprocess.PIPE) as server:
                assert server.stdout
                server.stdout.readline()
                try:
                    yield load, Path(name), server.pid
                finally:
                    server.kill()
        finally:
            libc.setns(before, _CLONE_NEWNET)
            os.close(before)


def _wire() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for address in (SOFT, *SERVERS):
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    assert SERVER in SERVERS


@contextmanager
def _preferred() -> Iterator[None]:
    """Go before what else runs: where sessions are scheduled, by the priority of this one."""
    before = _PRIORITY.read_text().split()[-1] if _PRIORITY.exists() else None
    with contextlib.suppress(OSError):
        _PRIORITY.write_text("-15")
    try:
        yield
    finally:
        if before is not None:
            with contextlib.suppress(OSError):
                _PRIORITY.write_text(before)


def tree(pid: int) -> list[int]:
    """Return a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(below for child in children for below in tree(int(child)))]


def processor_s(pids: list[int]) -> float:
    """Return the processor time that processes have used, with the kernel's work for them."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mib(pids: list[int]) -> float:
    """Return the memory that processes have, what they share counted once: PSS."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024
