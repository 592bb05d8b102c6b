"""The egress host of a lab with nothing for a tunnel in place, and with each answer to early demux, taking turns."""

from __future__ import annotations

import atexit
import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.coexist.load import NoCompiler, serve
from bench.routing.acknowledgement import acknowledgement
from netns_lab import Lab
from netns_lab.topology import CLIENT_LINK, DOWNLINK, SERVER, SOFT_ADDRESS, UPLINK

SOURCE = Path(__file__).parent / "native" / "ordinary.c"
NOTHING = "nothing"
WAYS = (NOTHING, "off", "ingress", "device", "sysctl")
REPETITIONS = 9
FRAMES, SENDS, CONNECTS = 60_000, 60_000, 2_000
OWN_ADDRESS = "100.64.0.2"
SLICE_PORT = 9001
_SINK_PORT = 9


@dataclass(frozen=True, slots=True)
class Measured:
    """Nanoseconds and microseconds of one way, the best of each in the repetitions: other work only makes one worse.

    ``receive_ns``: a packet for an established socket of the host's own address; ``receive_slice_ns``: of a port of the
    slice. ``send_ns``: a datagram of an unconnected socket. ``connect_us`` and ``connect_p99_us``: a TCP connection.
    """

    receive_ns: float
    receive_slice_ns: float
    send_ns: float
    connect_us: float
    connect_p99_us: float


@dataclass(frozen=True, slots=True)
class Ready:
    """A lab that is set up, and the frames for its two sockets as hexadecimal text."""

    lab: Lab
    own: str
    slice: str


def measure() -> dict[str, Measured]:
    """Return what ordinary sockets cost, by way."""
    with ExitStack() as stack:
        labs = {way: stack.enter_context(_prepared(way)) for way in WAYS}
        seen: dict[str, list[tuple[float, ...]]] = {way: [] for way in WAYS}
        for turn in range(REPETITIONS + 1):
            for way, ready in labs.items():
                values = _once(ready)
                if turn:  # the first warms caches
                    seen[way].append(values)
    columns = {way: list(zip(*rows, strict=True)) for way, rows in seen.items()}
    return {way: Measured(*map(min, each)) for way, each in columns.items()}


@contextmanager
def _prepared(way: str) -> Iterator[Ready]:
    """Yield a lab with natctl applied, and so with conntrack, and with a way on top."""
    with Lab(slices=[f"{SOFT_ADDRESS}:9000-9009"]) as lab:
        route = f'[route]\ntunnel = "{CLIENT_LINK}"\nvia = ["10.0.0.2"]\nouter = ["{UPLINK}"]\nslices = ["ams-1"]\n'
        path = lab.config(extra="" if way == NOTHING else f'{route}early_demux = "{way}"')
        lab.natctl("apply", "--config", path, expect=0)
        if way != NOTHING:
            lab.natctl("route", "apply", "--config", path, expect=0)
        lab.egress.sysctl("net.ipv4.tcp_timestamps", 0)  # so that an acknowledgement has no options
        sink = f"chain c {{ type filter hook input priority 0; udp dport {_SINK_PORT} drop; }}"
        lab.server.nft(f"table inet sink {{ {sink}; }}")
        serve(lab.server)
        yield Ready(lab, _frame(lab, OWN_ADDRESS, 40001), _frame(lab, SOFT_ADDRESS, SLICE_PORT))


def _frame(lab: Lab, address: str, port: int) -> str:
    sock = lab.egress.tcp_connect((SERVER, 443), src=(address, port))
    own = _ethernet_address(lab.egress.run(["ip", "link", "show", UPLINK]).stdout)
    gateway = _ethernet_address(lab.upstream.run(["ip", "link", "show", DOWNLINK]).stdout)
    return acknowledgement(sock, own, gateway).hex()


def _ethernet_address(listing: str) -> str:
    found = re.search(r"link/ether (\S+)", listing)
    assert found, listing
    return found[1]


def _once(ready: Ready) -> tuple[float, ...]:
    program, lab = str(_program()), ready.lab
    received = [
        float(lab.upstream.run([program, "frames", DOWNLINK, frame, str(FRAMES)]).stdout)
        for frame in (ready.own, ready.slice)
    ]
    sent = float(lab.egress.run([program, "sends", SERVER, str(_SINK_PORT), str(SENDS)]).stdout)
    connects = lab.egress.run([program, "connects", SERVER, "443", str(CONNECTS)]).stdout.split()
    return (*received, sent, *map(float, connects))


@functools.cache
def _program() -> Path:
    """Compile the program, once a process, and return where it is; NoCompiler where none is found."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoCompiler("needs a C compiler: install gcc")
    directory = tempfile.mkdtemp(prefix="natctl-routing-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    program = Path(directory, SOURCE.stem)
    subprocess.run([compiler, "-O2", "-o", program, SOURCE], check=True, capture_output=True)
    return program
