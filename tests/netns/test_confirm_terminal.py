"""``apply --confirm`` on a terminal: it asks, shows the time that is left, and what goes away takes the change back."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confirming import Site, changing
from operating import NATCTL, outcomes
from waiting import WITHIN_S

from netns_lab import Lab


@pytest.fixture
def site(lab: Lab, state: Path) -> Iterator[Site]:
    with changing(lab) as site:
        yield site


class Terminal:
    """A terminal with natctl in the foreground, in a session of its own, as after a login."""

    def __init__(self, site: Site, seconds: float) -> None:
        self._ours, theirs = pty.openpty()
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
        command = [sys.executable, "-c", LOGIN, *NATCTL[1:], "apply", "--config", site.config]
        self.process = site.lab.egress.popen([*command, "--confirm", str(seconds)], start_new_session=True, **streams)
        os.close(theirs)
        self.shown = ""

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + WITHIN_S
        while text not in self.shown:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.shown!r}"
            if select.select([self._ours], [], [], 0.1)[0]:
                self._read()

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def exit_code(self) -> int:
        deadline = time.monotonic() + WITHIN_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.shown
            if select.select([self._ours], [], [], 0.1)[0]:
                self._read()
        self._read()
        return self.process.returncode

    def hang_up(self) -> None:
        os.close(self._ours)
        self._ours = -1

    def _read(self) -> None:
        try:
            self.shown += os.read(self._ours, 65536).decode()
        except OSError:  # EIO: no process has the other end any more
            return


# Makes the terminal the one of the session, and natctl what runs in it; under nohup too, which has SIGHUP ignored.
LOGIN = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.fixture
def terminal(site: Site) -> Iterator[Terminal]:
    terminal = Terminal(site, 60)
    terminal.wait_for("Keep this change? [Y/n] Taken back in ")
    yield terminal
    if terminal._ours >= 0:
        terminal.hang_up()


@pytest.mark.parametrize("answer", ["y\n", "\n", "YES\n", "what?\ny\n"])
def test_on_a_terminal_the_change_is_confirmed_by_a_key(answer: str, terminal: Terminal, site: Site) -> None:
    terminal.type(answer)
    assert terminal.exit_code() == 0
    assert "generation 2 was confirmed" in terminal.shown
    assert site.has_changed()


def test_on_a_terminal_the_change_is_taken_back_by_a_key(terminal: Terminal, site: Site) -> None:
    terminal.type("n\n")
    assert terminal.exit_code() == 1
    assert "natctl: apply: generation 2 was rolled back: as asked" in terminal.shown
    site.wait_for_before()


def test_interrupting_takes_the_change_back(terminal: Terminal, site: Site) -> None:
    terminal.type("\x03")
    assert terminal.exit_code() == 1
    assert "was rolled back: as asked" in terminal.shown
    site.wait_for_before()


def test_the_time_is_shown_and_runs_out(site: Site) -> None:
    terminal = Terminal(site, 2)
    terminal.wait_for("Taken back in 2 s")
    terminal.wait_for("Taken back in 1 s")
    assert terminal.exit_code() == 1
    assert "was rolled back: not confirmed within 2 s" in terminal.shown
    terminal.hang_up()
    site.wait_for_before()


def test_a_terminal_sees_that_another_confirmed(terminal: Terminal, site: Site) -> None:
    site.natctl("apply", "--confirmed", expect=0)
    assert terminal.exit_code() == 0
    assert "generation 2 was confirmed" in terminal.shown


def test_a_change_is_taken_back_when_its_terminal_goes_away(site: Site) -> None:
    terminal = Terminal(site, 4)
    terminal.wait_for("Taken back in ")
    terminal.hang_up()
    assert terminal.process.wait(WITHIN_S) == -signal.SIGHUP
    assert site.is_waiting()
    site.wait_for_before()
    assert outcomes(site.lab)[-1][2] == "rolled-back"


def test_the_end_of_input_is_no_answer(terminal: Terminal, site: Site) -> None:
    terminal.type("\x04")
    time.sleep(0.3)
    assert site.is_waiting()
    site.natctl("apply", "--confirmed", expect=0)
    assert terminal.exit_code() == 0
