"""What an edit of a configuration means, from the sections that it touches: without reading ten thousand others again.

Where two texts differ is found by comparing bytes, and what has to do with it by looking for names and addresses. That
is right in a text that is *plain*, where each name and address is spelled in one way alone, and headers of sections
begin their lines. Whatever is less plain, or wrong, is for :func:`nat_rewriter.config.read_policy`.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nat_rewriter.config import check_document
from nat_rewriter.config.source import Document, parse_document
from nat_rewriter.errors import ConfigError
from nat_rewriter.model.policy import Policy

MOST_SECTIONS = 2048  # that an edit may have to do with
MOST_BYTES = 1 << 17
_STRIDE = 1 << 14  # bytes that are compared at once
_SLICE, _RULE = b"[[slice]]", b"[[snat]]"
# After each of these nothing is left open of the section before.
_HEADERS = (_SLICE, _RULE, b"[[dnat]]", b"[controller]", b"[controller.timeouts]")
_FRAME_KEYS = frozenset({"version", "controller", "dnat"})
_KEPT_KEYS = frozenset({"version", "controller"})
_HEADER = re.compile(rb"^\[", re.MULTILINE)
_INDENTED = re.compile(rb"\n[ \t]+\[")
_QUOTED = re.compile(rb"""["]([^"\n]*)["]|[']([^'\n]*)[']""")
_ADDRESS6 = re.compile(rb"""["']([0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)(?:/\d+)?["']""")

Sections = list[dict[str, object]]


@dataclass(frozen=True, slots=True)
class Edit:
    """Bytes ``first`` to ``last`` of a text, and what comes in their place: whole sections."""

    first: int
    last: int
    new: bytes

    def of(self, text: bytes) -> bytes:
        """Return the text after the edit."""
        return text[: self.first] + self.new + text[self.last :]


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The policies before and after an edit, with the slices and rules alone that have to do with it.

    Complete are the slices of the addresses of ``touched``.
    """

    before: Policy
    after: Policy
    touched: frozenset[str]


class Mentions:
    """Where each quoted text stands in a plain text: for who edits it again and again."""

    def __init__(self, text: bytes) -> None:
        self._places: dict[bytes, list[int]] = {}
        for match in _QUOTED.finditer(text):
            self._places.setdefault(match[1] if match[1] is not None else match[2], []).append(match.start())

    def of(self, word: bytes) -> Sequence[int]:
        """Return the bytes at which the quotes before a word stand."""
        return self._places.get(word, ())


def frame_of(text: bytes) -> Document | None:
    """Return what a sound configuration says beside slices and rules, as TOML has it; None where it is not plain."""
    if not _is_plain(text):
        return None
    starts = [match.start() for match in _HEADER.finditer(text)]
    pieces = [text[: starts[0] if starts else len(text)]]
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        if not text.startswith((_SLICE, _RULE), start):
            pieces.append(text[start:end])
    frame = _parsed(b"".join(pieces))
    if frame is None or not frame.keys() <= _FRAME_KEYS:
        return None
    return {key: value for key, value in frame.items() if key in _KEPT_KEYS}


def edit_between(before: bytes, after: bytes) -> Edit | None:
    """Return where two texts differ, extended to whole slices and rules; None where more than these may differ."""
    same = _common(before, after)
    rest = min(len(before), len(after)) - same
    left = _common_end(before, after, rest)
    first = before.rfind(b"\n[", 0, same) + 1
    if not before.startswith((_SLICE, _RULE), first):
        return None
    last = before.find(b"\n[", len(before) - left) + 1
    if last and not before.startswith(_HEADERS, last):
        return None
    last = last or len(before)
    edit = Edit(first, last, after[first : len(after) - (len(before) - last)])
    return edit if max(last - first, len(edit.new)) <= MOST_BYTES and _is_plain(edit.new) else None


def excerpt(text: bytes, edit: Edit, frame: Document, mentions: Mentions | None = None) -> Excerpt | None:
    """Return the policies before and after an edit of a plain, sound text; None where the whole has to be read.

    ``mentions`` are those of the text, where they are known.
    """
    try:
        old, new = _sections(text[edit.first : edit.last]), _sections(edit.new)
        around = _Surroundings(text, edit, mentions)
        around.gather(old, new)
        front, back = around.parsed()
        before, after = (check_document(frame | _joined(front, piece, back), "<edit>") for piece in (old, new))
        touched = frozenset(_text(one, "address") for one in (*old["slice"], *new["slice"]))
    except (_NotPlain, ConfigError):
        return None
    return Excerpt(before, after, touched)


class _Surroundings:
    """The sections outside of an edit that have to do with it: their first bytes, and their text."""

    def __init__(self, text: bytes, edit: Edit, mentions: Mentions | None) -> None:
        self._text, self._edit, self._known = text, edit, mentions
        self._found: dict[int, bytes] = {}
        self._mentioned: dict[str, list[int]] = {}
        self._quotes = (b'"', b"'") if b"'" in text else (b'"',)

    def gather(self, old: Mapping[str, Sections], new: Mapping[str, Sections]) -> None:
        """Find them: what has a name of the edit, rules beside such rules and their slices, slices of its addresses.

        And a slice with each of its ranges of ports, where these are chains: with IPv6.

        Raises _NotPlain where anything else has a name of it, or where there are too many.
        """
        slices, rules = [*old["slice"], *new["slice"]], [*old["snat"], *new["snat"]]
        named = {start for one in (*slices, *rules) for start in self._mentions(_text(one, "name"))}
        if not all(self._text.startswith((_SLICE, _RULE), start) for start in named):
            raise _NotPlain
        of_rules = (one for rule in rules for name in _texts(rule, "slices") for _, one in self._slices_with(name))
        named.update(start for one in (*slices, *of_rules) for start in self._alike(one))
        beside = {start for start in named if self._is_rule(start)}
        beside.update(start for each in list(beside) for start in self._rules_beside(each, each))
        if rules:
            beside.update(self._rules_beside(self._edit.first, self._edit.last - 1))
        read = _sections(b"".join(self._add(start) for start in sorted(beside)))
        for name in {name for one in (*rules, *read["snat"]) for name in _texts(one, "slices")}:
            self._add_slices(name)
        for start in named:
            self._add(start)
        for address in {_text(one, "address") for one in slices}:
            self._add_slices(address)

    def parsed(self) -> tuple[dict[str, Sections], dict[str, Sections]]:
        """Return the sections before the edit, and those after it."""
        front = b"".join(self._found[start] for start in sorted(self._found) if start < self._edit.first)
        back = b"".join(self._found[start] for start in sorted(self._found) if start >= self._edit.last)
        return _sections(front), _sections(back)

    def _alike(self, one: Mapping[str, object]) -> Iterator[int]:
        """Yield another slice with each range of an IPv6 one, and its rules: they say that its chains are there."""
        if ":" not in _text(one, "address"):
            return
        for ports in _texts(one, "ports"):
            for start, like in self._slices_with(ports):
                if like != one and ":" in _text(like, "address"):
                    yield start
                    yield from filter(self._is_rule, self._mentions(_text(like, "name")))
                    break

    def _slices_with(self, word: str) -> Iterator[tuple[int, Mapping[str, object]]]:
        """Yield the slices outside of the edit that have a text, and where each is."""
        for start in self._mentions(word):
            if self._text.startswith(_SLICE, start):
                yield from ((start, one) for one in _sections(self._section(start))["slice"])

    def _add_slices(self, word: str) -> None:
        for start in self._mentions(word):
            if self._text.startswith(_SLICE, start):
                self._add(start)

    def _add(self, start: int) -> bytes:
        if start not in self._found:
            if len(self._found) >= MOST_SECTIONS:
                raise _NotPlain
            self._found[start] = self._section(start)
        return self._found[start]

    def _section(self, start: int) -> bytes:
        end = self._text.find(b"\n[", start) + 1
        return self._text[start : end or len(self._text)].rstrip() + b"\n"

    def _mentions(self, word: str) -> list[int]:
        """Return the first bytes of the sections outside of the edit that have a text, each maybe more than once."""
        if word not in self._mentioned:
            known = self._known.of(word.encode()) if self._known else self._places(word.encode())
            outside = (place for place in known if not self._is_edited(place))
            self._mentioned[word] = [self._text.rfind(b"\n[", 0, place) + 1 for place in outside]
        return self._mentioned[word]

    def _places(self, word: bytes) -> Iterator[int]:
        for quote in self._quotes:
            quoted = quote + word + quote
            place = self._text.find(quoted)
            while place >= 0:
                yield place
                place = self._text.find(quoted, place + 1)

    def _is_rule(self, start: int) -> bool:
        return self._text.startswith(_RULE, start)

    def _rules_beside(self, first: int, last: int) -> Iterator[int]:
        before, after = self._text.rfind(b"\n" + _RULE, 0, first) + 1, self._text.find(b"\n" + _RULE, last) + 1
        yield from (start for start in (before, after) if start and not self._is_edited(start))

    def _is_edited(self, start: int) -> bool:
        return self._edit.first <= start < self._edit.last


class _NotPlain(Exception):
    """There is more to a text than can be told from a part of it."""


def _sections(text: bytes) -> dict[str, Sections]:
    """Return the slices and rules of a piece of text. Raises _NotPlain."""
    document = _parsed(text)
    if document is None or not document.keys() <= {"slice", "snat"}:
        raise _NotPlain
    return {kind: _tables(document.get(kind)) for kind in ("slice", "snat")}


def _tables(value: object) -> Sections:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise _NotPlain
    return value


def _parsed(text: bytes) -> Document | None:
    if not text.strip():
        return {}
    try:
        return parse_document(text, "<edit>")
    except ConfigError:
        return None


def _joined(*pieces: Mapping[str, Sections]) -> Document:
    whole = {kind: [one for piece in pieces for one in piece[kind]] for kind in ("slice", "snat")}
    return {kind: found for kind, found in whole.items() if found}


def _text(section: Mapping[str, object], key: str) -> str:
    found = section.get(key)
    if not isinstance(found, str):
        raise _NotPlain
    return found


def _texts(section: Mapping[str, object], key: str) -> list[str]:
    found = section.get(key, [])
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise _NotPlain
    return found


def _is_plain(text: bytes) -> bool:
    """Tell whether names and addresses are spelled in one way, and headers begin their lines."""
    if b"\\" in text or b'"""' in text or b"'''" in text or _INDENTED.search(text):
        return False
    return all(_is_usual(match[1].decode()) for match in _ADDRESS6.finditer(text))


def _is_usual(address: str) -> bool:
    try:
        return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, address)) == address
    except OSError:
        return False


def _common(one: bytes, other: bytes) -> int:
    """Return how many bytes two texts have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high and one[low : low + _STRIDE] == other[low : low + _STRIDE]:
        low += _STRIDE
    low, high = min(low, high), min(low + _STRIDE, high)
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _common_end(one: bytes, other: bytes, at_most: int) -> int:
    """Return how many bytes two texts have in common at their end."""
    ends = len(one), len(other)

    def same(low: int, high: int) -> bool:
        return one[ends[0] - high : ends[0] - low] == other[ends[1] - high : ends[1] - low]

    low = 0
    while low + _STRIDE < at_most and same(low, low + _STRIDE):
        low += _STRIDE
    high = min(low + _STRIDE, at_most)
    while low < high:
        middle = (low + high + 1) // 2
        if same(low, middle):
            low = middle
        else:
            high = middle - 1
    return low
