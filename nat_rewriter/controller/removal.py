"""Removing a table, and what natctl has beside it."""

from __future__ import annotations

from nat_rewriter.controller.apply import held_table
from nat_rewriter.controller.confirmation import Word, decide
from nat_rewriter.controller.generations import GenerationLog, Warn
from nat_rewriter.controller.marking import unmark_all
from nat_rewriter.controller.record import Record
from nat_rewriter.controller.sysctls import restore_sysctls
from nat_rewriter.kernel.confirm_socket import is_waiting
from nat_rewriter.kernel.inbound import Handover
from nat_rewriter.model.generations import Outcome
from nat_rewriter.model.transaction import Transaction
from nat_rewriter.plan import plan_removal
from nat_rewriter.render.inbound import inbound_table_name
from nat_rewriter.render.terms import terms_table_name


def remove_table(log: GenerationLog, warn: Warn, wait_s: float = 0.0) -> bool:
    """Take the table out of the kernel and give back the sysctls; tell whether there was a table.

    The removal is kept as a generation. A change that waits to be confirmed does so no more.
    """
    table = log.place.table
    if is_waiting(table):
        decide(table, Word.KEEP)  # or what was there before would come back later
    with held_table(table, wait_s) as nft:
        # What `natctl agent` has beside it goes with it.
        live = nft.read(table)
        removals = [plan_removal(live), plan_removal(nft.read(terms_table_name(table)))]
        transaction = Transaction(tuple(step for removal in removals for step in removal.steps))
        if transaction:
            record = Record(log, warn)
            record.begin(None, "remove")
            with record.failing():
                nft.run(transaction)
                unmark_all(live)
            record.finish(Outcome.APPLIED)
        if nft.find_listing("netdev", inbound_table_name(table)) is not None:
            with Handover(table) as handover:
                handover.take_down()
        for setting in restore_sysctls(log.place):
            warn(f"{setting.name} was changed since natctl set it, and is left as it is")
    return bool(transaction)
