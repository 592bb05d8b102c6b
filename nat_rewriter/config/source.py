"""Bytes of a configuration -> TOML document; one problem says why there is none."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

from nat_rewriter.config.values import shown
from nat_rewriter.errors import ConfigError, Problem

Document = dict[str, object]

# tomllib tells the place inside its message: "Unclosed array (at line 3, column 9)".
PLACE = re.compile(r"(?P<reason>.*) \(at (?P<place>line \d+, column \d+|end of document)\)", re.DOTALL)

# A key of very many parts: tomllib takes memory by the square of their number, gigabytes for some kilobytes of text.
DEEP_KEY = re.compile(r"""(?<![\w-])(?:(?>[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){99}""")

# What a document may have ten thousand of, and how many characters of it are read at once.
_LONG = frozenset({"slice", "snat"})
_LONG_HEADER = re.compile(r"^\[\[(?:slice|snat)\]\]", re.MULTILINE)
_PIECE = 1 << 16


def read_bytes(path: Path) -> bytes:
    """Return the content of the file; raise ConfigError when it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        reason = "does not exist"
    except IsADirectoryError:
        reason = "is a directory"
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = f"cannot be read: {error.strerror if isinstance(error, OSError) else error}"
    raise _fault(str(path), "file", reason, "expected a readable TOML file; --config PATH names another one")


def parse_document(content: bytes, file: str) -> Document:
    """Return the document as plain dicts, lists and scalars; raise ConfigError with the line of a syntax error."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _fault(file, f"line {line}", f"byte 0x{content[error.start]:02x}", "expected UTF-8 text") from None
    if not text.strip():
        raise _fault(file, "file", "empty", "expected at least version = 1 and one [[slice]]")
    try:
        return _loaded(text)
    except RecursionError:
        raise _fault(
            file, "file", "nested too deep", "expected tables and lists as docs/reference.toml has them"
        ) from None
    except ValueError as error:  # TOMLDecodeError, and what int() and datetime raise beneath it
        raise _syntax_fault(file, text, str(error)) from None


def _loaded(text: str) -> Document:
    """Return the document, by the faster parser where there is one; what it refuses, tomllib judges and tells."""
    try:
        import rtoml

        return _joined(rtoml.loads, text) or rtoml.loads(text)
    except (ImportError, ValueError):
        if DEEP_KEY.search(text):
            raise RecursionError from None
        return tomllib.loads(text)


def _joined(load: Callable[[str], Document], text: str) -> Document | None:
    """Return a long document, read piece by piece: half of the time of one that is read at once goes into its memory.

    None where the whole may be something else than its pieces. Raises ValueError where a piece is no document.
    """
    head, *pieces = _pieces(text)
    whole = load(head) if pieces else {}
    if not pieces or not whole.keys().isdisjoint(_LONG):  # slice = […], to which no [[slice]] may be added
        return None
    for piece in pieces:
        for key, value in load(piece).items():
            if key not in whole:
                whole[key] = value
            elif key in _LONG and isinstance(there := whole[key], list) and isinstance(value, list):
                there += value
            else:
                return None
    return whole


def _pieces(text: str) -> Iterator[str]:
    """Yield what is before the first slice or rule, and pieces that each begin with one."""
    start, found = 0, _LONG_HEADER.search(text)
    while found:
        yield text[start : found.start()]
        start = found.start()
        found = _LONG_HEADER.search(text, start + _PIECE)
    yield text[start:]


def _syntax_fault(file: str, text: str, message: str) -> ConfigError:
    match = PLACE.fullmatch(message)
    reason, place = (match["reason"], match["place"]) if match else (message, "file")
    lines = text.rstrip().split("\n")  # as tomllib counts them: splitlines() knows more line ends
    number = int(place.split()[1].rstrip(",")) if place.startswith("line") else len(lines)
    line = lines[number - 1].strip() if number <= len(lines) else ""
    return _fault(file, place, shown(line), f"expected TOML: {reason[:1].lower()}{reason[1:]}")


def _fault(file: str, path: str, value: str, expected: str) -> ConfigError:
    return ConfigError([Problem(file, path, value, expected)])
