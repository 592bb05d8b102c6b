"""The workers of the proxies: started, restarted when one dies, replaced at a reload, ended with grace."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType

from nat_rewriter.errors import UsageError
from nat_rewriter.model.policy import Coexist, Policy
from nat_rewriter.model.proxies import Endpoint, Proxy, ProxyMode
from nat_rewriter.proxy.descriptors import raise_limit, tell_shortage
from nat_rewriter.proxy.listeners import open_listeners, require_addresses
from nat_rewriter.proxy.outcomes import ConnectionEnd
from nat_rewriter.proxy.relay import EVENT_SIZE, Counts, RelayGeneration, RelayOptions, read_ends
from nat_rewriter.proxy.status import ProxyStatus, WorkerChange

Place = tuple[Endpoint, bool]  # where to listen, and whether for other hosts' addresses as well
_QUICK_DEATH_S = 5.0
_LONGEST_WAIT_S = 5.0
_LAST_WORDS_S = 2.0  # between the signal that ends connections and the one that ends processes
_PIPE_SIZE = 1 << 20


@dataclass(slots=True)
class _Worker:
    number: int
    pid: int = 0  # 0: none at the moment
    started_at: float = 0.0
    quick_deaths: int = 0
    start_at: float = 0.0


@dataclass(slots=True)
class _Running:
    """A generation with its workers; ``draining``: a newer one has taken its place."""

    relay: RelayGeneration
    workers: list[_Worker]
    draining: bool = False
    listeners: dict[Place, list[socket.socket]] = field(default_factory=dict)


class Supervisor:
    """Runs the proxies of a policy. ``step`` has to be called again and again; leaving the block ends all at once."""

    def __init__(self, policy: Policy, workers: int, *, tell_all: bool = False) -> None:
        self._workers, self._tell_all = workers, tell_all
        self._events, self._events_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._old: list[_Running] = []
        self._base: dict[str, Counts] = {}
        self.restarts = self.reloads = 0
        raise_limit(policy.proxies)
        try:
            self._current = self._begin(policy, {})
        except BaseException:
            self._close_pipe()
            raise

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        self._close_pipe()

    def _close_pipe(self) -> None:
        os.close(self._events)
        os.close(self._events_in)

    def _begin(self, policy: Policy, before: dict[Place, list[socket.socket]]) -> _Running:
        """Open what is not open yet, then start workers; on an error everything is as it was."""
        if not policy.proxies:
            raise UsageError("proxy", "the configuration has no [[proxy]]")
        require_addresses(owned.address for proxy in policy.proxies for owned in proxy.slices)
        opened: dict[Place, list[socket.socket]] = {}
        try:
            for place in _places(policy.proxies):
                if place not in before:
                    opened[place] = open_listeners(place[0], self._workers, transparent=place[1])
        except BaseException:
            _close_all(opened)
            raise
        kept = {place: before[place] for place in _places(policy.proxies) if place in before}
        running = _Running(self._relay(policy), [_Worker(number) for number in range(self._workers)])
        running.listeners = kept | opened
        for worker in running.workers:
            self._start(running, worker)
        return running

    def _relay(self, policy: Policy) -> RelayGeneration:
        coexist = policy.controller.coexist
        options = RelayOptions(
            workers=self._workers,
            events_fd=self._events_in,
            tell_all=self._tell_all,
            split=coexist is Coexist.SPLIT,
            retry_refused=coexist is Coexist.REFUSE,
        )
        return RelayGeneration(policy.proxies, options)

    def _start(self, running: _Running, worker: _Worker) -> None:
        listeners = [
            (running.listeners[place][worker.number].fileno(), index)
            for index, proxy in enumerate(running.relay.proxies)
            for place in _places([proxy])
        ]
        worker.pid = running.relay.spawn(worker.number, listeners)
        worker.started_at = time.monotonic()

    def step(self, timeout_s: float) -> list[ConnectionEnd | WorkerChange]:
        """Wait for what happens, at most that long; return connections that ended, and workers that died or came."""
        ready, _, _ = select.select([self._events], [], [], timeout_s)
        found: list[ConnectionEnd | WorkerChange] = []
        if ready:
            with contextlib.suppress(BlockingIOError):
                found += read_ends(os.read(self._events, _PIPE_SIZE // EVENT_SIZE * EVENT_SIZE))
        found += self._tend(self._current)
        for running in list(self._old):
            found += self._tend(running)
            if not any(worker.pid for worker in running.workers):
                self._old.remove(running)
                self._retire(running)
        return found

    def _tend(self, running: _Running) -> Iterator[WorkerChange]:
        for worker in running.workers:
            reason = _how_it_ended(worker.pid) if worker.pid else None
            if reason is not None:
                yield from self._lost(running, worker, reason)
            if not worker.pid and not running.draining and time.monotonic() >= worker.start_at:
                self._start(running, worker)
                self.restarts += 1
                yield WorkerChange(worker.number, worker.pid, died=False)

    def _lost(self, running: _Running, worker: _Worker, reason: str) -> Iterator[WorkerChange]:
        pid, worker.pid = worker.pid, 0
        running.relay.bury(worker.number)
        if running.draining and reason == "exit code 0":
            return
        quick = time.monotonic() - worker.started_at < _QUICK_DEATH_S
        worker.quick_deaths = worker.quick_deaths + 1 if quick else 0
        wait_s = min(_LONGEST_WAIT_S, 0.1 * 2 ** min(worker.quick_deaths, 10)) if worker.quick_deaths > 1 else 0.0
        worker.start_at = time.monotonic() + wait_s
        yield WorkerChange(worker.number, pid, died=True, reason=reason)

    def reload(self, policy: Policy) -> None:
        """Let new workers take over with another policy; connections stay with the old ones until they end.

        On an error everything stays as it was.
        """
        before = self._current
        raise_limit(policy.proxies)
        self._current = self._begin(policy, before.listeners)
        gone = {place: found for place, found in before.listeners.items() if place not in self._current.listeners}
        before.listeners = {}
        _close_all(gone)
        self._drain(before)
        self._old.append(before)
        self.reloads += 1

    def _drain(self, running: _Running) -> None:
        running.draining = True
        _signal(running, signal.SIGTERM)

    def begin_stop(self) -> None:
        """Take no more connections; those that are there go on."""
        _close_all(self._current.listeners)
        self._drain(self._current)

    @property
    def running(self) -> bool:
        """Whether any worker is left."""
        return any(worker.pid for running in (self._current, *self._old) for worker in running.workers)

    def end(self) -> None:
        """End all connections, then all processes."""
        everything = (self._current, *self._old)
        for running in everything:
            running.draining = True
            _close_all(running.listeners)
        for number, patience_s in ((signal.SIGQUIT, _LAST_WORDS_S), (signal.SIGKILL, _LAST_WORDS_S)):
            deadline = time.monotonic() + patience_s
            for running in everything:
                _signal(running, number)
            while self.running and time.monotonic() < deadline:
                self.step(0.02)

    def _retire(self, running: _Running) -> None:
        for proxy, counts in zip(running.relay.proxies, running.relay.counts(), strict=True):
            self._base.setdefault(proxy.name, Counts()).add(counts)

    def status(self) -> ProxyStatus:
        """Return what is known now."""
        totals = {proxy.name: Counts() for proxy in self._current.relay.proxies}
        for name, base in self._base.items():
            totals.setdefault(name, Counts()).add(base)
        for running in (self._current, *self._old):
            for proxy, counts in zip(running.relay.proxies, running.relay.counts(), strict=True):
                totals.setdefault(proxy.name, Counts()).add(counts)
        return ProxyStatus(
            proxies=self._current.relay.proxies,
            counts=totals,
            workers=sum(worker.pid > 0 for worker in self._current.workers),
            draining=sum(worker.pid > 0 for running in self._old for worker in running.workers),
            restarts=self.restarts,
            reloads=self.reloads,
        )

    @property
    def shortage(self) -> str:
        """A sentence where the workers may have too few descriptors for the connections they allow, else nothing."""
        return tell_shortage(self._current.relay.proxies, self._workers)

    def pids(self) -> list[int]:
        """Return the processes of the workers that take connections."""
        return [worker.pid for worker in self._current.workers if worker.pid]


def _places(proxies: tuple[Proxy, ...] | list[Proxy]) -> list[Place]:
    return [(endpoint, proxy.mode is ProxyMode.TPROXY) for proxy in proxies for endpoint in proxy.listen]


def _close_all(listeners: dict[Place, list[socket.socket]]) -> None:
    for group in listeners.values():
        for listener in group:
            listener.close()


def _signal(running: _Running, number: int) -> None:
    for worker in running.workers:
        if worker.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, number)


def _how_it_ended(pid: int) -> str | None:
    """Return how a child ended, or None while it runs."""
    found, status = os.waitpid(pid, os.WNOHANG)
    if not found:
        return None
    code = os.waitstatus_to_exitcode(status)
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
