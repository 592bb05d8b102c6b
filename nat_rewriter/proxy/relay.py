"""The edge to the relay: settings in, processes and counters out. The one module that touches its C core."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from nat_rewriter.errors import KernelError
from nat_rewriter.model.proxies import Endpoint, Proxy, ProxyMode, ProxyProtocol
from nat_rewriter.model.slices import Address, PortRange
from nat_rewriter.proxy._core._native import ffi, lib
from nat_rewriter.proxy.outcomes import ConnectionEnd, Outcome

EVENT_SIZE: int = ffi.sizeof("struct relay_event")
_MODES = {
    ProxyMode.REDIRECT: lib.RELAY_REDIRECT,
    ProxyMode.TPROXY: lib.RELAY_TPROXY,
    ProxyMode.LISTEN: lib.RELAY_LISTEN,
    ProxyMode.SOCKS: lib.RELAY_SOCKS,
    ProxyMode.CONNECT: lib.RELAY_CONNECT,
}
_VERSIONS = {ProxyProtocol.OFF: 0, ProxyProtocol.V1: 1, ProxyProtocol.V2: 2}
_NUMBERS = ("accepted", "active", "bytes_up", "bytes_down", "port_tries", "untold", "pipes")


@dataclass(slots=True)
class Counts:
    """What the workers counted for one proxy."""

    accepted: int = 0
    active: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    port_tries: int = 0
    untold: int = 0
    pipes: int = 0
    ended: list[int] = field(default_factory=lambda: [0] * len(Outcome))

    def add(self, other: Counts) -> None:
        """Add another's counts to these."""
        for name in _NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.ended = [ours + theirs for ours, theirs in zip(self.ended, other.ended, strict=True)]


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """What the relay has to know beyond the proxies. ``split``: only the socket ports of slices may be used."""

    workers: int
    events_fd: int
    tell_all: bool
    split: bool
    retry_refused: bool


class RelayGeneration:
    """Proxies as the relay knows them, and the memory in which their workers count."""

    def __init__(self, proxies: Sequence[Proxy], options: RelayOptions) -> None:
        self.proxies = tuple(proxies)
        self.workers = options.workers
        self._options = options
        self._kept: list[Any] = []  # cffi frees what nobody holds
        self._memory = mmap.mmap(-1, max(1, len(proxies) * options.workers) * ffi.sizeof("struct relay_counters"))
        self._counters = ffi.cast("struct relay_counters *", ffi.from_buffer(self._memory, require_writable=True))
        self._proxies = ffi.new("struct relay_proxy[]", len(proxies))
        for described, proxy in zip(self._proxies, proxies, strict=True):
            self._describe(described, proxy)

    def _describe(self, described: Any, proxy: Proxy) -> None:
        ranges = proxy.source_ranges(split=self._options.split)
        array = ffi.new("struct relay_range[]", len(ranges))
        for item, (address, ports) in zip(array, ranges, strict=True):
            _fill_range(item, address, ports)
        self._kept.append(array)
        described.mode = _MODES[proxy.mode]
        described.proxy_protocol = _VERSIONS[proxy.proxy_protocol]
        described.retry_refused = self._options.retry_refused
        described.max_connections = proxy.max_connections
        described.idle_ms = proxy.idle_timeout_s * 1000
        described.connect_ms = proxy.connect_timeout_s * 1000
        described.ranges, described.range_count = array, len(ranges)
        described.username, described.password = proxy.username.encode(), proxy.password.encode()
        if proxy.to is not None:
            described.to_host, described.to_port = proxy.to.host.encode(), proxy.to.port

    def spawn(self, worker: int, listeners: Sequence[tuple[int, int]]) -> int:
        """Start a worker for listeners, each a descriptor and the number of its proxy; return its pid."""
        array = ffi.new("struct relay_listener[]", len(listeners))
        for item, (descriptor, proxy) in zip(array, listeners, strict=True):
            item.fd, item.proxy = descriptor, proxy
        settings = ffi.new("struct relay_settings *")
        settings.worker, settings.workers = worker, self.workers
        settings.proxies, settings.proxy_count = self._proxies, len(self.proxies)
        settings.listeners, settings.listener_count = array, len(listeners)
        settings.counters = self._counters
        settings.events_fd, settings.tell_all = self._options.events_fd, self._options.tell_all
        pid: int = lib.relay_spawn(settings)
        if pid < 0:
            raise KernelError("start proxy worker", -pid, os.strerror(-pid))
        return pid

    def bury(self, worker: int) -> None:
        """Take note that a worker is gone, and its connections with it."""
        for index in range(len(self.proxies)):
            slot = self._slot(worker, index)
            slot.ended[Outcome.FAILED] += slot.active
            slot.active = slot.pipes = 0

    def counts(self) -> list[Counts]:
        """Return what all workers counted, by proxy."""
        found = [Counts() for _ in self.proxies]
        for worker in range(self.workers):
            for index, total in enumerate(found):
                total.add(_read_counts(self._slot(worker, index)))
        return found

    def _slot(self, worker: int, proxy: int) -> Any:
        return self._counters[worker * len(self.proxies) + proxy]


def read_ends(content: bytes) -> Iterator[ConnectionEnd]:
    """Yield the connections' ends that workers wrote to the pipe, each whole."""
    for offset in range(0, len(content) - EVENT_SIZE + 1, EVENT_SIZE):
        event = ffi.new("struct relay_event *")
        ffi.memmove(event, content[offset : offset + EVENT_SIZE], EVENT_SIZE)
        yield ConnectionEnd(
            proxy=event.proxy,
            worker=event.worker,
            outcome=Outcome(event.outcome),
            error=event.error,
            bytes_up=event.bytes_up,
            bytes_down=event.bytes_down,
            duration_ms=event.duration_ms,
            client=_endpoint(event.client),
            destination=_endpoint(event.destination),
            source=_endpoint(event.source),
            host=ffi.string(event.host).decode("ascii", "replace"),
        )


def _fill_range(item: Any, address: Address, ports: PortRange) -> None:
    item.first.family = address.version
    item.first.port = ports.first
    item.first.bytes = address.packed.ljust(16, b"\0")
    item.count = len(ports)


def _endpoint(address: Any) -> Endpoint | None:
    packed = bytes(address.bytes)
    if address.family == 4:
        return Endpoint(IPv4Address(packed[:4]), address.port)
    return Endpoint(IPv6Address(packed), address.port) if address.family == 6 else None


def _read_counts(slot: Any) -> Counts:
    return Counts(**{name: getattr(slot, name) for name in _NUMBERS}, ended=list(slot.ended))
