"""What natctl has changed for routes, on disk: written before each change, so that a crash loses nothing of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from nat_rewriter.errors import StateError
from nat_rewriter.kernel import store
from nat_rewriter.model.generations import Place
from nat_rewriter.model.routing import Kept

_FILE = "route.json"


def read_kept(place: Place) -> Kept:
    """Return what natctl has changed; empty where nothing is known. Raises StateError for a damaged record."""
    content = store.read_file(_path(place))
    if content is None:
        return Kept()
    try:
        fields = json.loads(content)
        return Kept(
            locals={int(family): tuple(map(int, found)) for family, found in fields["locals"].items()},
            sysctls={str(name): (str(before), str(given)) for name, (before, given) in fields["sysctls"].items()},
            text=str(fields["text"]),
            listing=str(fields["listing"]),
            covers=tuple((str(a), str(b), int(c), int(d)) for a, b, c, d in fields["covers"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        raise StateError("read state", "is damaged, expected what natctl route has changed", _path(place)) from None


def write_kept(place: Place, kept: Kept) -> None:
    """Replace the record, as a whole."""
    store.make_directory(place.directory)
    store.write_file(_path(place), json.dumps(asdict(kept), indent=1).encode() + b"\n")


def forget_kept(place: Place) -> None:
    """Remove the record."""
    store.remove_files([_path(place)])


def _path(place: Place) -> Path:
    return place.directory / _FILE
