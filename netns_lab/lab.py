"""A lab: four hosts in network namespaces, made in a tenth of a second and taken away whole."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from nat_rewriter.errors import NatctlError, UsageError
from nat_rewriter.kernel.netns_names import name_of
from nat_rewriter.kernel.store import default_directory
from netns_lab import namespaces, scratch, state, topology, upstream
from netns_lab.host import Host
from netns_lab.settings import DEFAULT_SLICES, config_text, parse_slices

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,60}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a natctl command did: exit code and what it printed."""

    exit_code: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        """Return standard output as one JSON document."""
        return json.loads(self.stdout)

    def lines(self) -> list[Any]:
        """Return standard output as one JSON document a line."""
        return [json.loads(line) for line in self.stdout.splitlines() if line.strip()]


class Lab:
    """Client, egress host, server and an upstream that brings back only what belongs to ``slices``.

    ::

        with Lab() as lab:
            lab.server.tcp_server(443)
            lab.natctl("apply", "--config", lab.config(coexist="confine"), expect=0)
            lab.client.tcp_connect(("203.0.113.1", 443))
    """

    def __init__(self, *, slices: Iterable[str] = DEFAULT_SLICES, clients: int = 1, name: str | None = None) -> None:
        """Describe a lab; entering it makes it. A lab without a name gets one from this process and chance."""
        if not 1 <= clients <= topology.MAX_CLIENTS:
            raise UsageError("make lab", f"expected 1 to {topology.MAX_CLIENTS} clients", clients)
        self.name = checked_name(name or namespaces.unique_name())
        self.clients = clients
        self.slices = parse_slices(slices)
        self._specs = list(slices)
        self._resources = ExitStack()
        hosts = {host: self._host(host) for host in namespaces.HOSTS}
        self.client, self.egress = hosts["client"], hosts["egress"]
        self.server, self.upstream = hosts["server"], hosts["upstream"]

    def _host(self, host: str) -> Host:
        return Host(namespaces.namespace_name(self.name, host), self._resources)

    @classmethod
    def attached(cls, name: str) -> Lab:
        """Return a lab that exists already. Leaving it closes what was opened through it, and lets the lab stand."""
        found = state.read(name)
        if found is None or name not in namespaces.list_labs():
            raise NatctlError("find lab", "there is none of that name, natctl lab list shows all", name)
        return cls(slices=found.slices, clients=found.clients, name=name)

    def __enter__(self) -> Lab:
        self.make(state.Process.current())
        self._resources.callback(take_down, self.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, servers and sockets that were opened through this lab, and a lab made by ``with``."""
        self._resources.close()

    def make(self, owner: state.Process | None) -> None:
        """Make the namespaces and wire them. Without an owner the lab stays until :func:`take_down`."""
        state.write(state.LabState(self.name, self._specs, self.clients, owner))
        names = {host: namespaces.namespace_name(self.name, host) for host in namespaces.HOSTS}
        try:
            for name in names.values():
                namespaces.create(name)
            topology.build(names, [piece.address for piece in self.slices], self.clients)
            self.upstream.nft(upstream.ruleset(self.slices))
        except BaseException:
            take_down(self.name)
            raise

    def natctl(self, *arguments: str | Path, expect: int | None = None, input: str | None = None) -> Outcome:
        """Run natctl on the egress host as a user would; NatctlError if its exit code is not the expected one."""
        return run_natctl(self.egress, arguments, expect, input)

    def config(
        self, *, coexist: str = "confine", guard: str = "drop", spread: str | None = None, slice_keys: str = "",
        snat_keys: str = "", extra: str = "",
    ) -> Path:  # fmt: skip
        """Write a configuration for the slices and clients of this lab; return its path, which ends with the lab.

        ``slice_keys`` and ``snat_keys`` are lines for each ``[[slice]]`` and ``[[snat]]``; ``extra`` comes at the end.
        """
        text = config_text(
            self.slices, coexist=coexist, guard=guard, spread=spread, slice_keys=slice_keys, snat_keys=snat_keys,
            extra=extra,
        )  # fmt: skip
        return self.config_file(text)

    def config_file(self, text: str) -> Path:
        """Write a configuration; return its path, which ends with the lab."""
        path = self._resources.enter_context(scratch.scratch_directory(self.name)) / "natctl.toml"
        path.write_text(text)
        return path

    def leaks(self) -> upstream.Leaks:
        """Return what the upstream counted outside the slices, since the lab was made or counts were reset."""
        return upstream.parse_counters(self.upstream.run(["nft", "-j", "list", "counters"]).stdout)

    def reset_leaks(self) -> None:
        """Set the upstream's counters to zero."""
        self.upstream.run(["nft", "reset", "counters"])

    def owns(self, address: str, port: int) -> bool:
        """Tell whether a slice of this lab has that port or echo id."""
        return any(str(piece.address) == address and piece.owns(port) for piece in self.slices)


def run_natctl(
    host: Host, arguments: Sequence[str | Path], expect: int | None = None, input: str | None = None
) -> Outcome:
    """Run natctl on a host as a user would; NatctlError if its exit code is not the expected one."""
    command = [sys.executable, "-m", "nat_rewriter", *map(str, arguments)]
    done = host.run(command, check=False, input=input)
    if expect is not None and done.returncode != expect:
        said = (done.stderr or done.stdout).strip()
        words = " ".join(map(str, arguments))
        raise NatctlError("natctl", f"exit code {done.returncode}, expected {expect}: {said}", words)
    return Outcome(done.returncode, done.stdout, done.stderr)


def checked_name(name: str) -> str:
    """Return a name that is fit for namespaces and files; raise UsageError for any other."""
    if not _NAME.fullmatch(name):
        raise UsageError("make lab", "expected a name of letters, digits and . _ -", name)
    return name


def take_down(name: str) -> None:
    """Take away all of one lab, whoever made it; nothing there is no error."""
    for namespace in namespaces.list_labs().get(name, ()):
        namespaces.delete(namespace)
        # What natctl has kept about a host that is no more.
        shutil.rmtree(default_directory() / name_of(namespace), ignore_errors=True)
    scratch.remove_leftovers(name)
    state.forget(name)


def list_all() -> list[str]:
    """Return the labs that there is anything of: namespaces, a record, or scratch directories without a user."""
    return sorted({*namespaces.list_labs(), *state.names(), *scratch.list_leftovers()})


def list_leftovers(*, force: bool = False) -> list[str]:
    """Return the labs that nobody uses: those made to stay that are empty, and what a crash left. With force, all."""
    return [name for name in list_all() if force or not _in_use(name)]


def owner(name: str) -> state.Process | None:
    """Return the process that a lab was made for, by its record or its name; None for one that was made to stay."""
    found = state.read(name)
    return found.owner if found and found.owner else namespaces.maker(name)


def _in_use(name: str) -> bool:
    """Tell whether the process lives that a lab was made for, or one is in a lab that was made to stay."""
    process = owner(name)
    return namespaces.held(name) or (process.alive() if process else namespaces.inhabited(name))
