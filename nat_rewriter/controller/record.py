"""A generation while it is being applied: kept before the change, and with what became of it after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nat_rewriter.config.edit import Edit
from nat_rewriter.controller.generations import GenerationLog, Warn
from nat_rewriter.errors import Interrupted, LibraryCrashed, NatctlError, StateError
from nat_rewriter.model.generations import Configuration, Generation, Outcome


@dataclass(slots=True)
class Record:
    """A generation as it is being applied. Without a place to keep it, that is said once, and the kernel goes first."""

    log: GenerationLog
    warn: Warn
    generation: Generation | None = None

    def begin(self, configuration: Configuration | None, action: str) -> None:
        """Keep the generation, unless it is the current one in everything."""
        with self._kept():
            if action == "none" and configuration and self._is_current(configuration):
                return
            self.generation = self.log.begin(configuration, action)

    def begin_edit(self, of: int, edit: Edit, source: str) -> None:
        """Keep a generation that is another one but for an edit."""
        with self._kept():
            self.generation = self.log.begin_edit(of, edit, source)

    @contextmanager
    def keeping_ruleset(self, ruleset: Callable[[], str]) -> Iterator[None]:
        """Keep the ruleset of the generation as well, while the block waits for the kernel."""
        if self.generation is None:
            yield
            return
        from concurrent.futures import ThreadPoolExecutor

        number = self.generation.number
        with ThreadPoolExecutor(max_workers=1) as beside:
            kept = beside.submit(lambda: self.log.keep_ruleset(number, ruleset()))
            yield
        try:
            kept.result()
        except StateError as error:
            self.warn(f"the ruleset of generation {number} is not kept: {error}")

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except StateError as error:
            self.warn(f"this generation is not kept: {error}")

    def finish(self, outcome: Outcome, reason: str | None = None) -> None:
        """Keep what became of it, for good."""
        with self._finished():
            if self.generation:
                self.generation = self.log.finish(self.generation, outcome, reason)
                self.log.make_lasting(self.generation.number)

    def note(self, outcome: Outcome) -> None:
        """Keep what became of it, as long as the host does not crash."""
        with self._finished():
            if self.generation:
                self.generation = self.log.finish(self.generation, outcome)

    def make_lasting(self) -> None:
        """Let it outlast a crash of the host."""
        with self._finished():
            if self.generation:
                self.log.make_lasting(self.generation.number)

    @contextmanager
    def _finished(self) -> Iterator[None]:
        try:
            yield
        except StateError as error:
            number = self.generation.number if self.generation else 0
            self.warn(f"the outcome of generation {number} is not kept: {error}")

    def is_finished(self) -> bool:
        """Tell whether what became of it is kept already."""
        if self.generation is None:
            return True
        try:
            return self.log.get(self.generation.number).outcome is not Outcome.UNFINISHED
        except NatctlError:
            return True

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Keep it as failed where the block raises an error; as unfinished where that leaves open what was done."""
        try:
            yield
        except Interrupted:
            raise
        except LibraryCrashed as error:
            self.finish(Outcome.UNFINISHED, str(error))
            raise
        except NatctlError as error:
            self.finish(Outcome.FAILED, str(error))
            raise

    def _is_current(self, configuration: Configuration) -> bool:
        newest = self.log.list_generations()[-1:]
        return [one.outcome for one in newest] == [Outcome.APPLIED] and (
            self.log.configuration_text(newest[0].number) == configuration.text
        )
