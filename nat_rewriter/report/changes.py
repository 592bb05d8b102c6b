"""What an apply would change, as lines for people and as JSON objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from nat_rewriter.model.changes import Difference, PolicyChange, Verb
from nat_rewriter.report.json_lines import without_absent

SIGNS = {Verb.ADDED: "+", Verb.CHANGED: "~", Verb.WITHDRAWN: "-"}
LONGEST_FIELD = 60  # of a longer one the begin and the end are told
# What need not be told of something new or gone: these have their usual values nearly always.
_USUAL = {("spread", "client"), ("timestamps", "keep")}


def policy_change_lines(change: PolicyChange) -> Iterator[str]:
    """Yield a line for each setting, slice and rule that differs: + comes, ~ changes, - goes."""
    for name, (before, after) in change.settings.items():
        yield f"~ controller {name}: {before} -> {after}"
    for one in change.differences:
        yield difference_line(one)


def difference_line(one: Difference) -> str:
    """Return a difference as a line: sign, kind, name, fields, and the live flows that it touches."""
    return f"{SIGNS[one.verb]} {one.kind} {one.name}: {'; '.join((*_field_words(one), *_flow_words(one)))}"


def policy_change_object(change: PolicyChange) -> dict[str, Any]:
    """Return slices and rules that differ as `diff --json` prints them."""
    return {
        "settings": {name: list(pair) for name, pair in change.settings.items()},
        "slices": _by_verb(one for one in change.differences if one.kind == "slice"),
        "rules": _by_verb(one for one in change.differences if one.kind != "slice"),
    }


def _by_verb(differences: Iterable[Difference]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {verb.value: [] for verb in Verb}
    for one in differences:
        fields = {
            "kind": None if one.kind == "slice" else one.kind,
            "name": one.name,
            "before": one.before and dict(one.before),
            "after": one.after and dict(one.after),
            "flows": one.flows,
            "stranded": one.stranded,
        }
        found[one.verb.value].append(without_absent(fields))
    return found


def _field_words(one: Difference) -> Iterator[str]:
    if one.verb is Verb.CHANGED:
        for name, (before, after) in one.fields.items():
            yield f"{name} {_short(before) or 'none'} -> {_short(after) or 'none'}"
        return
    fields = one.after or one.before or {}
    yield ", ".join(f"{name} {_short(text)}" for name, text in fields.items() if (name, text) not in _USUAL)


def _flow_words(one: Difference) -> Iterator[str]:
    if not one.flows:
        return
    stranded = f", {one.stranded} of them left without a slice" if one.stranded else ""
    yield f"{one.flows} live flow{'s' if one.flows > 1 else ''}{stranded}"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_FIELD else f"{text[:40]}…{text[-19:]}"
