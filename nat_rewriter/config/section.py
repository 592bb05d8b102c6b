"""One table of a configuration, read key by key: every fault becomes a problem, none ends the reading."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from nat_rewriter.config.values import NAME, Unexpected, quoted, shown
from nat_rewriter.errors import Problem

T = TypeVar("T")
Parse = Callable[[object], T]

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


class Report:
    """The problems of one file, in the order they were found."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []

    def refuse(self, path: str, value: str, expected: str) -> None:
        """Add a problem; ``expected`` goes on after the word "expected"."""
        self.problems.append(Problem(self.file, path, value, f"expected {expected}"))


class Section:
    """A table of the file. Hands out its keys as checked values, and remembers which were faulty.

    Paths look like ``slice[2] "ams-1".ports[0]``: positions count from 0, and the name follows where it is sound.
    ``refuse_unknown`` comes last: it reports the keys that nothing asked for.
    """

    # There may be twenty thousand, most of which are asked for nothing: tuples and frozen sets, as empty ones are one.
    __slots__ = ("_asked", "_content", "_faulty", "_inner", "_path", "_report")

    def __init__(self, report: Report, path: str | tuple[str, int], content: Mapping[str, object]) -> None:
        self._path = path
        self._report = report
        self._inner: tuple[Section, ...] = ()
        self._content = content
        self._asked: tuple[str, ...] = ()
        self._faulty: frozenset[str] = frozenset()

    @property
    def path(self) -> str:
        """Where the table is in the file; of one in a list of tables put together only when somebody asks."""
        if not isinstance(self._path, str):
            listed, index = self._path
            self._path = f"{listed}[{index}]{_label(self._content)}"
        return self._path

    @property
    def content(self) -> Mapping[str, object]:
        """The table as the file has it."""
        return self._content

    @property
    def clean(self) -> bool:
        """Whether nothing was refused so far, here and in the tables inside."""
        return not self._faulty and all(section.clean for section in self._inner)

    def has(self, key: str) -> bool:
        """Tell whether the file has the key, sound or not."""
        return key in self._content

    def has_any(self, *keys: str) -> bool:
        """Tell whether the file has one of the keys; either is known from now on."""
        self._asked += keys
        return not self._content.keys().isdisjoint(keys)

    def sound(self, key: str) -> bool:
        """Tell whether nothing was refused at the key."""
        return key not in self._faulty

    def refuse(self, key: str, expected: str, index: int | None = None) -> None:
        """Report the value of a key, or one item of its list, with what is expected in its place."""
        self._faulty |= {key}
        path, value = self._join(key), self._content.get(key)
        if index is not None and isinstance(value, list):
            path, value = f"{path}[{index}]", value[index]
        self._report.refuse(path, shown(value) if key in self._content else "missing", expected)

    def one(self, key: str, parse: Parse[T], default: T) -> T:
        """Return the value of an optional key; the default where it is absent or faulty."""
        self._asked += (key,)
        if key not in self._content:
            return default
        try:
            return parse(self._content[key])
        except Unexpected as error:
            self.refuse(key, str(error))
            return default

    def required(self, key: str, parse: Parse[T]) -> T | None:
        """Return the value of a key that has to be there; None where it is absent or faulty."""
        if key in self._content:
            return self.one(key, parse, None)
        self._asked += (key,)
        self.refuse(key, expected_by(parse))
        return None

    def many(self, key: str, parse: Parse[T], *, single: bool = False) -> dict[int, T]:
        """Return the sound items of an optional list by their position. ``single``: a lone item needs no list."""
        self._asked += (key,)
        if key not in self._content:
            return {}
        value = self._content[key]
        if single and not isinstance(value, list):
            value = [value]
        if not isinstance(value, list):
            self.refuse(key, f"a list, each item {expected_by(parse)}")
            return {}
        if not value:
            self.refuse(key, f"at least one item, each {expected_by(parse)}")
        return self._items(key, parse, value)

    def _items(self, key: str, parse: Parse[T], values: Iterable[object]) -> dict[int, T]:
        items: dict[int, T] = {}
        for index, value in enumerate(values):
            try:
                items[index] = parse(value)
            except Unexpected as error:
                self.refuse(key, str(error), index)
        return items

    def distinct(self, key: str, parse: Parse[T], *, single: bool = False) -> dict[int, T]:
        """Like ``many``, and an item may come only once."""
        items = self.many(key, parse, single=single)
        seen: set[T] = set()
        for index, item in items.items():
            if item in seen:
                self.refuse(key, "every item once", index)
            seen.add(item)
        return items

    def table(self, key: str) -> Section | None:
        """Return a table inside this one, empty where it is absent; None where the value is no table."""
        self._asked += (key,)
        value = self._content.get(key, {})
        if not isinstance(value, dict):
            self.refuse(key, f"one table: [{key}], or {key} = {{ … }}")
            return None
        inner = Section(self._report, self._join(key), value)
        self._inner += (inner,)
        return inner

    def tables(self, key: str) -> list[Section]:
        """Return the tables of an optional list of tables."""
        self._asked += (key,)
        if key not in self._content:
            return []
        value = self._content[key]
        if not isinstance(value, list) or not value:
            self.refuse(key, f"one or more tables that each start with [[{key}]]")
            return []
        for index, item in enumerate(value):
            if not isinstance(item, dict):
                self.refuse(key, f"a table that starts with [[{key}]]", index)
        path = self._join(key)
        return [
            Section(self._report, (path, index), item) for index, item in enumerate(value) if isinstance(item, dict)
        ]

    def refuse_unknown(self) -> None:
        """Report every key that nothing asked for, with the known key that is closest."""
        for key in self._content:
            if key not in self._asked:
                known = ", ".join(sorted(set(self._asked)))
                self.refuse(key, f"a known key{suggestion(key, self._asked)}; known here: {known}")

    def _join(self, key: str) -> str:
        text = key if BARE_KEY.fullmatch(key) else quoted(key)
        return f"{self.path}.{text}" if self.path else text


def expected_by(parse: Parse[T]) -> str:
    """Return the form that a parser accepts, in its own words."""
    try:
        parse(None)
    except Unexpected as error:
        return str(error)
    raise TypeError(f"{parse!r} accepts None")


def refuse_repeated_names(sections: Iterable[tuple[Section, str | None]]) -> None:
    """Report each name that an earlier section of the same kind has."""
    seen: dict[str, Section] = {}
    for section, name in sections:
        if name is not None and seen.setdefault(name, section) is not section:
            section.refuse("name", f"a name that {seen[name].path} does not have")


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return ``, did you mean "X"?`` for the known word that is closest, or nothing when none is close."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1)
    return f', did you mean "{close[0]}"?' if close else ""


def _label(content: Mapping[str, object]) -> str:
    name = content.get("name")
    return f' "{name}"' if isinstance(name, str) and NAME.fullmatch(name) else ""
