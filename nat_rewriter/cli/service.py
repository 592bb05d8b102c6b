"""Commands that run as a service: its manager is told how it is, and SIGHUP has it read its configuration again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import click

from nat_rewriter.cli.env import Env
from nat_rewriter.cli.state import checked_configuration, read_configuration, read_text
from nat_rewriter.errors import NatctlError
from nat_rewriter.kernel.service_manager import ServiceManager

if TYPE_CHECKING:
    from nat_rewriter.controller.applier import Applier
    from nat_rewriter.model.generations import Configuration

Follow = Callable[["Configuration"], None]  # go on by another configuration from now on


class Service:
    """The configuration in force, which SIGHUP may change, and the word about it to the service manager.

    It is what was read; and what is applied, where there is something to apply it.
    """

    def __init__(
        self, env: Env, status: Callable[[Configuration], str],
        applier_of: Callable[[Configuration], Applier] | None = None,
    ) -> None:  # fmt: skip
        self._env, self._manager, self._describe = env, ServiceManager(), status
        self.configuration: Configuration = read_configuration(env)
        self._applier = applier_of(self.configuration) if applier_of else None
        self._complete(self.configuration)

    def attend(self, steps: Iterator[float], follow: Follow) -> Iterator[float]:
        """Yield the steps of a watch that is ready, and between them ping, and reload when SIGHUP has come."""
        with _hangups(by_manager=self._manager.present) as hung_up:
            self._manager.ready(self._status())
            for step in steps:
                self._manager.alive()
                if hung_up():
                    self._reload(follow)
                yield step
            self._manager.stopping()

    def _reload(self, follow: Follow) -> None:
        """Read the configuration again and follow it; one that cannot be followed is told, and the old one stays."""
        self._manager.reloading()
        try:
            configuration = self._read_again()
            follow(configuration)
        except NatctlError as error:
            click.echo(f"natctl: reload failed, the configuration before stays in force: {error}", err=True)
            self._manager.ready(f"{self._status()}; reload failed, see the log")
            return
        self.configuration = configuration
        self._env.note(f"natctl: reloaded: {self._status()}")
        self._manager.ready(self._status())

    def _read_again(self) -> Configuration:
        if self._env.config_path == "-":
            raise NatctlError("reload", "standard input cannot be read again: give the configuration as a file")
        text, source = read_text(self._env)
        if self._applier:
            self._applier.edit(text, source)
        configuration = checked_configuration(text, source)
        if configuration.table != self.configuration.table:
            raise NatctlError("reload", "another table needs a restart", configuration.table)
        self._complete(configuration)
        return configuration

    def _complete(self, configuration: Configuration) -> None:
        if self._applier:
            self._applier.complete(configuration)
            self._env.note(f"natctl: applied: {self._applier.last}")

    def _status(self) -> str:
        return self._describe(self.configuration)


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Let SIGINT and SIGTERM ask for a stop, while the block runs."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _hangups(*, by_manager: bool) -> Iterator[Callable[[], bool]]:
    """Yield what tells whether SIGHUP came since it was last asked.

    Where a person may hang up, at a terminal, SIGHUP still ends the process.
    """
    if not by_manager and _has_terminal():
        yield lambda: False
        return
    asked: list[int] = []  # no threading.Event: a handler that interrupts its clear() would wait for it for ever

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    def take() -> bool:
        if not asked:
            return False
        asked.clear()
        return True

    before = signal.signal(signal.SIGHUP, note)
    try:
        yield take
    finally:
        signal.signal(signal.SIGHUP, before)


def _has_terminal() -> bool:
    """Tell whether the process has a controlling terminal: tty(4)."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
