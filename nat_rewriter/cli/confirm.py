"""``apply --confirm``: asking whether a change is to stay, while the time runs."""

from __future__ import annotations

import selectors
import sys
import time
from typing import TYPE_CHECKING

import click

from nat_rewriter.cli.env import Env
from nat_rewriter.cli.state import warn
from nat_rewriter.errors import EXIT_DONE, NatctlError

if TYPE_CHECKING:
    from nat_rewriter.controller.confirmation import Guardian, Verdict, Word
    from nat_rewriter.controller.generations import GenerationLog
    from nat_rewriter.model.generations import Configuration

CLEAR_LINE = "\r\x1b[K"


def apply_for_now(env: Env, configuration: Configuration, log: GenerationLog, wait_s: float, seconds: float) -> int:
    """Apply a configuration, and keep it only where that is confirmed in time; NatctlError where it was taken back."""
    from nat_rewriter.cli.apply import print_applied
    from nat_rewriter.controller.apply import Confirm, apply_configuration
    from nat_rewriter.controller.confirmation import Guardian

    with Guardian(configuration.table) as guardian:
        applied = apply_configuration(configuration, log, warn, wait_s, Confirm(guardian, seconds))
        print_applied(env, applied, configuration, log)
        if guardian.counting:
            sys.stdout.flush()
            _finish(_verdict(env, guardian, seconds))
    return EXIT_DONE


def confirm(table: str) -> int:
    """Keep the change that waits; NatctlError where none does."""
    from nat_rewriter.controller.confirmation import Word, decide

    _finish(decide(table, Word.KEEP))
    return EXIT_DONE


def take_back(table: str) -> int:
    """Take the change that waits back at once; NatctlError where none does, or another kept it."""
    from nat_rewriter.controller.confirmation import Word, decide

    verdict = decide(table, Word.UNDO)
    if verdict.kept:
        raise NatctlError("roll back", verdict.sentence)
    click.echo(verdict.sentence)
    return EXIT_DONE


def _finish(verdict: Verdict) -> None:
    if not verdict.kept:
        raise NatctlError("apply", verdict.sentence)
    click.echo(verdict.sentence)


def _verdict(env: Env, guardian: Guardian, seconds: float) -> Verdict:
    from nat_rewriter.controller.confirmation import Word

    try:
        if sys.stdin.isatty() and sys.stderr.isatty():
            _ask(guardian, seconds)
        else:
            env.note(f"taken back in {seconds:g} s, unless natctl apply --confirmed is run before")
        return guardian.verdict()
    except KeyboardInterrupt:
        guardian.say(Word.UNDO)
        return guardian.verdict()


def _ask(guardian: Guardian, seconds: float) -> None:
    """Ask until there is an answer, or a verdict without one. The terminal stays as it is: it may go away any time."""
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin, selectors.EVENT_READ)
        selector.register(guardian, selectors.EVENT_READ)
        while True:
            left = max(0, round(deadline - time.monotonic()))
            click.echo(f"{CLEAR_LINE}Keep this change? [Y/n] Taken back in {left} s: ", nl=False, err=True)
            ready = {key.fileobj for key, _ in selector.select(1)}
            if guardian in ready:
                click.echo(err=True)
                return
            if sys.stdin in ready and _answered(selector, guardian):
                return


def _answered(selector: selectors.BaseSelector, guardian: Guardian) -> bool:
    """Read an answer and pass it on; tell whether it was one."""
    line = sys.stdin.readline()
    if not line:  # Ctrl-D, or no terminal any more: nobody will answer here
        selector.unregister(sys.stdin)
        return False
    if word := _word(line.strip().lower()):
        guardian.say(word)
    return word is not None


def _word(answer: str) -> Word | None:
    from nat_rewriter.controller.confirmation import Word

    return {"": Word.KEEP, "y": Word.KEEP, "yes": Word.KEEP, "n": Word.UNDO, "no": Word.UNDO}.get(answer)
