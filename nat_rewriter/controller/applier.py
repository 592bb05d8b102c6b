"""Applying one configuration after another in a process that stays: an edit of a few slices is in force at once."""

from __future__ import annotations

import gc
import time

from nat_rewriter.controller.apply import apply_configuration
from nat_rewriter.controller.edit import Editor
from nat_rewriter.controller.generations import GenerationLog, Warn
from nat_rewriter.model.generations import Configuration, Generation

_LOCK_WAIT_S = 10.0


class Applier:
    """Puts configurations of one table in force, in two steps: what can be done by its text alone, and the rest.

    It belongs to the network namespace of the thread that makes it.
    """

    def __init__(self, log: GenerationLog, warn: Warn) -> None:
        self._log, self._warn, self._editor = log, warn, Editor(log, warn)
        self._edited: bytes | None = None
        self._generation: Generation | None = None
        self._took_s = 0.0

    @property
    def last(self) -> str:
        """What the last configuration became, in words."""
        if self._generation is None:
            return "up to date"
        return f"generation {self._generation.number}, in force within {self._took_s * 1000:.0f} ms"

    def edit(self, text: bytes, source: str) -> None:
        """Put a configuration in force that is a small edit of the one before; any other waits to be completed.

        Raises LockHeld, StateError, and what the kernel says.
        """
        began = time.monotonic()
        edited = self._editor.apply(text, source, _LOCK_WAIT_S)
        self._edited = text if edited else None
        self._generation = edited.generation if edited else None
        self._took_s = time.monotonic() - began

    def complete(self, configuration: Configuration) -> None:
        """Have all of a configuration in force, and be ready for the next. Raises as :func:`apply_configuration`."""
        began = time.monotonic()
        if self._edited == configuration.text:
            self._editor.settle()
        else:
            applied = apply_configuration(configuration, self._log, self._warn, _LOCK_WAIT_S)
            self._generation, self._took_s = applied.generation, time.monotonic() - began
        self._edited = None
        self._editor.prepare()
        # No search for garbage among ten thousand slices falls into the next edit.
        gc.collect()
        gc.freeze()
