"""A transaction as nft text: exactly what libnftables is given, and what ``apply --dry-run`` prints."""

from __future__ import annotations

from collections.abc import Mapping

from nat_rewriter.model.transaction import (
    AddElements,
    CreateTable,
    DeleteElements,
    DeleteObject,
    DeleteTable,
    FlushRules,
    Step,
    Transaction,
)


def transaction_text(transaction: Transaction) -> str:
    """Return the transaction as nft commands; empty for an empty one."""
    return "\n".join(_step_text(step) for step in transaction.steps)


def _step_text(step: Step) -> str:
    match step:
        case DeleteTable(table):
            # Adding it first makes the deletion right whether or not the table is there.
            return f"add table inet {table}\ndelete table inet {table}"
        case FlushRules(table):
            return f"flush table inet {table}"
        case DeleteObject(table, kind, name):
            return f"delete {kind} inet {table} {name}"
        case CreateTable(_, skeleton):
            return skeleton
        case AddElements(table, name, elements):
            return f"add element inet {table} {name} {{ {_elements_text(elements)} }}"
        case DeleteElements(table, name, keys):
            return f"delete element inet {table} {name} {{ {', '.join(keys)} }}"


def _elements_text(elements: Mapping[str, str]) -> str:
    return ", ".join(f"{key} : {value}" if value else key for key, value in elements.items())
