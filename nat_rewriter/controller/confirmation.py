"""Changes that are taken back unless somebody confirms them, whatever becomes of the natctl that made them.

A :class:`Guardian` is a process in a session of its own. It is there before the change is made, knows the way back, and
counts the time. Whoever decides tells it so: the natctl that made the change, or another one through
:mod:`nat_rewriter.kernel.confirm_socket`.
"""

from __future__ import annotations

import contextlib
import enum
import os
import selectors
import signal
import socket
import syslog
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from types import TracebackType
from typing import Any, Self

from nat_rewriter.controller.record import Record
from nat_rewriter.controller.way_back import WayBack, go_back
from nat_rewriter.errors import NatctlError
from nat_rewriter.kernel import confirm_socket
from nat_rewriter.kernel.lock import table_lock
from nat_rewriter.kernel.nft import KernelNft
from nat_rewriter.model.generations import Outcome

LOCK_WITHIN_S = 60.0
READY_WITHIN_S = 10.0
KILLED = "natctl was ended while it applied"
ASKED = "as asked"
_STANDARD_STREAMS = 3


class Word(enum.Enum):
    """What is said of a change that waits."""

    KEEP = "keep"
    UNDO = "undo"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a change, and the sentence that says so."""

    kept: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Ward:
    """What a guardian looks after: the generation, and the way back from it."""

    way: WayBack
    record: Record

    @property
    def name(self) -> str:
        """What the change is called in sentences."""
        generation = self.record.generation
        return f"generation {generation.number}" if generation else f"the change of table inet {self.way.table}"


def decide(table: str, word: Word) -> Verdict:
    """Tell the guardian of a table to keep or undo its change; return its verdict, which others may have made."""
    answer = confirm_socket.call(table, word.value)
    if answer is None:
        raise NatctlError("confirm", "no change waits to be confirmed", table)
    made, _, sentence = answer.partition(" ")
    return Verdict(made == Word.KEEP.value, sentence)


class Guardian:
    """The process that takes a change back, as the natctl that makes the change sees it.

    ::

        with Guardian(table) as guardian:
            guardian.protect(way, record)  # before the change
            ...                            # an exception from here on, or the end of this process: taken back
            guardian.start(30.0)           # the change is made: the time runs
            verdict = guardian.verdict()   # after guardian.say(Word.KEEP), or what others said
    """

    def __init__(self, table: str) -> None:
        self._control, theirs = Pipe()
        self._ward: Ward | None = None
        self._pid = os.fork()
        if self._pid == 0:
            _become_guardian(theirs, table)
        theirs.close()
        self.counting = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._control.close()
        # What was not completed is taken back before natctl ends; what waits goes on without it.
        os.waitpid(self._pid, os.WNOHANG if self.counting else 0)

    def fileno(self) -> int:
        """Return a descriptor that can be read when there is a verdict."""
        return self._control.fileno()

    def protect(self, way: WayBack, record: Record) -> None:
        """Hand over the way back; when this returns, the change may be made."""
        self._ward = Ward(way, record)
        self._control.send(self._ward)
        answer = _received(self._control) if self._control.poll(READY_WITHIN_S) else None
        if answer is not True:
            raise NatctlError("guard change", str(answer or "the guardian does not run"))

    def start(self, seconds: float) -> None:
        """Let the time run: the change is made."""
        self._control.send(seconds)
        self.counting = True

    def say(self, word: Word) -> None:
        """Decide; the verdict follows, and may differ where another was faster."""
        with contextlib.suppress(OSError):
            self._control.send(word)

    def verdict(self) -> Verdict:
        """Wait for the verdict. Where the guardian was killed, the change is taken back here."""
        found = _received(self._control)
        if isinstance(found, Verdict):
            return found
        assert self._ward is not None, "a verdict needs something that waits for it"
        return _taken_back(self._ward, "the guardian was killed")


def _become_guardian(control: Connection, table: str) -> None:
    """Leave the terminal, the session and the files of natctl behind, look after one change, and end."""
    try:
        os.setsid()
        _let_go_of_files(control.fileno())
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        _guard(control, table)
    finally:
        os._exit(0)  # nothing of what natctl has buffered or registered is to happen twice


def _let_go_of_files(kept: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(_STANDARD_STREAMS):
        os.dup2(null, number)
    os.closerange(_STANDARD_STREAMS, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")


def _guard(control: Connection, table: str) -> None:
    ward = _received(control)
    if not isinstance(ward, Ward):
        return
    try:
        with confirm_socket.listening(table) as door:
            control.send(True)
            seconds = _received(control)
            if isinstance(seconds, float):
                _tell(control, _await_decision(ward, control, door, seconds))
            else:
                _taken_back(ward, KILLED)
    except NatctlError as error:
        _tell(control, str(error))


def _await_decision(ward: Ward, control: Connection, door: socket.socket, seconds: float) -> Verdict:
    word, reason, answer = _first_word(control, door, seconds)
    verdict = _kept(ward) if word is Word.KEEP else _taken_back(ward, reason)
    answer(f"{(Word.KEEP if verdict.kept else Word.UNDO).value} {verdict.sentence}")
    return verdict


Decision = tuple[Word, str, Callable[[str], None]]


def _first_word(control: Connection, door: socket.socket, seconds: float) -> Decision:
    """Return the first decision that comes, from whichever side; without any in time, it is to undo."""
    deadline = time.monotonic() + seconds
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(wake)
    with selectors.DefaultSelector() as selector:
        for source in (control, door, ended):
            selector.register(source, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if key.fileobj == ended:
                    return Word.UNDO, "the guardian was told to end", _nobody
                if key.fileobj is control and (word := _received(control)) is None:
                    selector.unregister(control)  # natctl is gone: others may still decide
                elif decision := _decision(word, _nobody) if key.fileobj is control else _heard(door):
                    return decision
    return Word.UNDO, f"not confirmed within {seconds:g} s", _nobody


def _heard(door: socket.socket) -> Decision | None:
    heard = confirm_socket.hear(door)
    if heard is None:
        return None
    with contextlib.suppress(ValueError):
        return _decision(Word(heard[0]), heard[1])
    return None


def _decision(word: Any, answer: Callable[[str], None]) -> Decision | None:
    return (word, ASKED, answer) if isinstance(word, Word) else None


def _nobody(_: str) -> None:
    """Answer no one: natctl gets the verdict itself."""


def _kept(ward: Ward) -> Verdict:
    ward.record.finish(Outcome.APPLIED)
    return _logged(Verdict(True, f"{ward.name} was confirmed"))


def _taken_back(ward: Ward, reason: str) -> Verdict:
    try:
        with table_lock(ward.way.table, LOCK_WITHIN_S) as lock, KernelNft(holding=(lock.fileno(),)) as nft:
            changed = go_back(ward.way, nft)
    except (NatctlError, OSError) as error:
        ward.record.finish(Outcome.UNFINISHED, f"{reason}; rolling it back failed: {error}")
        return _logged(Verdict(False, f"{ward.name} ({reason}) could not be rolled back: {error}"))
    if not changed and ward.record.is_finished():
        return Verdict(False, f"{ward.name} had changed nothing")  # natctl has kept why
    ward.record.finish(Outcome.ROLLED_BACK if changed else Outcome.FAILED, reason)
    return _logged(Verdict(False, f"{ward.name} was rolled back: {reason}"))


def _logged(verdict: Verdict) -> Verdict:
    """Tell the system's log too: the natctl that asked may be gone, and its terminal with it."""
    syslog.openlog("natctl", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_NOTICE if verdict.kept else syslog.LOG_WARNING, verdict.sentence)
    return verdict


def _received(control: Connection) -> Any:
    """Return what the other end sent, None when there is no other end any more."""
    try:
        return control.recv()
    except (EOFError, OSError):
        return None


def _tell(control: Connection, message: object) -> None:
    with contextlib.suppress(OSError):
        control.send(message)
