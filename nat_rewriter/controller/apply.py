"""Applying a configuration: one natctl at a time, and every generation kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nat_rewriter.controller.generations import GenerationLog, Warn
from nat_rewriter.controller.in_force import note_in_force
from nat_rewriter.controller.intent import Change, read_change, run_change
from nat_rewriter.controller.record import Record
from nat_rewriter.errors import NatctlError, StateError
from nat_rewriter.kernel.confirm_socket import is_waiting
from nat_rewriter.kernel.lock import table_lock
from nat_rewriter.kernel.nft import KernelNft
from nat_rewriter.model.generations import Configuration, Generation, Outcome
from nat_rewriter.model.ruleset import Ruleset
from nat_rewriter.plan import plan
from nat_rewriter.render.transaction import transaction_text

if TYPE_CHECKING:
    from nat_rewriter.controller.confirmation import Guardian


@dataclass(frozen=True, slots=True)
class Applied:
    """What an apply changed, and the generation it was kept as (None: nothing new, or no place to keep it).

    ``previous`` is the number of the generation before it, where one is known.
    """

    change: Change
    generation: Generation | None
    previous: int | None
    confirmed: str | None = None  # that this was a confirmation, as a sentence


@dataclass(frozen=True, slots=True)
class Confirm:
    """That a change is taken back unless it is confirmed in time, and by whom."""

    guardian: Guardian
    seconds: float


@contextmanager
def held_table(table: str, wait_s: float = 0.0) -> Iterator[KernelNft]:
    """Hold the lock of a table and have nftables at hand; should natctl be killed, its last transaction ends first."""
    with table_lock(table, wait_s) as lock, KernelNft(holding=(lock.fileno(),)) as nft:
        yield nft


def apply_configuration(
    configuration: Configuration,
    log: GenerationLog,
    warn: Warn,
    wait_s: float = 0.0,
    confirm: Confirm | None = None,
) -> Applied:
    """Make the kernel match a configuration, in one transaction, and keep it as a generation.

    With ``confirm`` the change is taken back unless somebody confirms it. A configuration that is in the kernel already
    and waits to be confirmed is confirmed by this. Raises LockHeld where another natctl keeps the lock for longer than
    ``wait_s``, else what intent.apply() raises; a generation that failed is kept as such.
    """
    with held_table(configuration.table, wait_s) as nft:
        change = read_change(configuration.policy, nft)
        previous = log.current_number()
        waiting = is_waiting(configuration.table)
        if not waiting:
            generation = _run_recorded(change, configuration, Record(log, warn), nft, confirm)
            if confirm is None:
                _note_in_force(configuration, generation.number if generation else previous, log, nft)
    if not waiting:
        return Applied(change, generation, previous)
    if change.transaction:
        raise NatctlError("apply", "another configuration waits to be confirmed: natctl apply --confirmed keeps it")
    return Applied(change, None, previous, _confirmed(configuration.table))


def _confirmed(table: str) -> str:
    """Keep the change that waits for it, and return the sentence that says so."""
    from nat_rewriter.controller.confirmation import Word, decide

    verdict = decide(table, Word.KEEP)
    if not verdict.kept:
        raise NatctlError("apply", verdict.sentence)
    return verdict.sentence


def _run_recorded(
    change: Change, configuration: Configuration, record: Record, nft: KernelNft, confirm: Confirm | None
) -> Generation | None:
    record.begin(configuration, change.action)
    guarded = confirm if change.transaction else None
    with record.failing(), record.keeping_ruleset(lambda: generation_ruleset(change.wanted)):
        if guarded:
            from nat_rewriter.controller.way_back import find_way_back

            way = find_way_back(change, configuration.policy, record.log.current_policy, nft)
            guarded.guardian.protect(way, record)
        run_change(change, configuration.policy, nft)
    record.finish(Outcome.UNCONFIRMED if guarded else Outcome.APPLIED)
    if guarded:
        guarded.guardian.start(guarded.seconds)
    return record.generation


def _note_in_force(configuration: Configuration, number: int | None, log: GenerationLog, nft: KernelNft) -> None:
    """Note which generation is in force, so that the next edit of it need not read all again."""
    ruleset = nft.undisturbed()
    with suppress(StateError):
        # What could not be kept now is not what was kept before.
        if number and ruleset and log.configuration_text(number) == configuration.text:
            note_in_force(log, number, ruleset)


def generation_ruleset(wanted: Ruleset) -> str:
    """Return a whole ruleset as nft text that replaces the table when it is loaded."""
    return transaction_text(plan(wanted, "", None)) + "\n"
