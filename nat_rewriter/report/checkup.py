"""What a host offers, as JSON and as lines."""

from __future__ import annotations

from typing import Any

from nat_rewriter.model.checkup import Check


def check_object(check: Check) -> dict[str, Any]:
    """Return a check with the field names that ``doctor --json`` prints; empty fields are left out."""
    fields = {
        "name": check.name,
        "subject": check.subject,
        "answer": check.answer.value,
        "weight": check.weight.value,
        "purpose": check.purpose,
        "found": check.found,
        "remedy": check.remedy,
    }
    return {name: value for name, value in fields.items() if value}


def check_line(check: Check) -> str:
    """Return a check as one line: answer, name, subject, what was found, and how to mend it."""
    subject = f" {check.subject}" if check.subject else ""
    remedy = f" | mend: {check.remedy}" if check.remedy else ""
    return f"{check.answer.value:<7} {check.weight.value:<11} {check.name}{subject}: {check.found}{remedy}"
