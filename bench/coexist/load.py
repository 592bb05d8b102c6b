"""Load inside a lab: a server, clients that connect as applications do, and frames sent as fast as they go.

The programs are C, compiled when they are first used: at thousands of connections a second an interpreter would be
what is measured.
"""

from __future__ import annotations

import atexit
import functools
import json
import select
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path

from netns_lab.host import Host

SOURCES = Path(__file__).parent / "native"
PORT = 443


class NoCompiler(Exception):
    """There is no C compiler here."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run of connections went.

    ``worked``: a message went out and came back. ``hung``: silence for the length of the patience. ``gave_up``: as many
    errors as tries were allowed. ``broken``: the connection ended before it should, or carried other bytes.
    ``refused``: tries that a claim (or a closed port) ended; ``refused_free``: those where no conntrack entry held the
    tuple. ``unavailable``: tries that ended because a local socket has the tuple. ``slow``: worked after 0.9 s.
    ``cpu_us``: processor time of the clients, which includes most of what their packets cost the kernel.
    """

    begun: int
    worked: int
    hung: int
    gave_up: int
    broken: int
    tries: int
    refused: int
    refused_free: int
    unavailable: int
    other_errors: int
    slow: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    seconds: float
    cpu_us: float

    @property
    def per_second(self) -> float:
        """Connections that worked, a second."""
        return self.worked / self.seconds


class Connects:
    """A running program that makes connections; those it holds stay until :meth:`close`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def done(self) -> bool:
        """Tell whether every connection has worked or failed."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def outcome(self) -> Outcome:
        """Wait until every connection has worked or failed, and say how it went."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"connects ended early: {self._process.communicate()[1].strip()}")
        values = json.loads(line)
        return Outcome(**{field.name: values[field.name] for field in fields(Outcome)})

    def close(self) -> None:
        """Close the connections that are held."""
        self._process.communicate()


@functools.cache
def program(name: str, sources: Path = SOURCES) -> Path:
    """Compile one of the C programs, once a process, and return where it is; NoCompiler where none is found."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoCompiler("needs a C compiler: install gcc")
    output = _build_directory() / name
    command = [compiler, "-O2", "-o", str(output), str(sources / f"{name}.c")]
    subprocess.run(command, check=True, capture_output=True)
    return output


@functools.cache
def _build_directory() -> Path:
    directory = tempfile.mkdtemp(prefix="natctl-load-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)


def serve(host: Host, port: int = PORT) -> subprocess.Popen[str]:
    """Start an echo server, TCP and UDP, on a port of every address of a host; return once it listens."""
    process = host.popen([program("server"), str(port)])
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise RuntimeError(f"server: {process.communicate()[1].strip()}")
    return process


def connects(host: Host, source: str, to: str, **options: object) -> Connects:
    """Start connections from a host. Options are those of the program: ``count=45, ports="9000-9099", udp=True``."""
    command: list[str] = [str(program("connects")), "--source", source, "--to", to, *_arguments(options)]
    return Connects(host.popen(command, stdin=subprocess.PIPE))


def packets(host: Host, flows: str = "", **options: object) -> float:
    """Send frames from a host and return the nanoseconds that each took. Options are those of the program.

    ``flows`` has a line for each flow: address and port of the sender, then those of the receiver.
    """
    ends = {"flows": True, "count": flows.count("\n")} if flows else {}
    return float(host.run([str(program("packets")), *_arguments(ends | options)], input=flows or None).stdout)


def _arguments(options: dict[str, object]) -> list[str]:
    found = [(f"--{name.replace('_', '-')}", value) for name, value in options.items() if value is not False]
    return [word for name, value in found for word in ((name,) if value is True else (name, str(value)))]
