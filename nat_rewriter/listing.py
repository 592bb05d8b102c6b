"""How nft lists a table without its elements, taken apart into the objects in it."""

from __future__ import annotations

import re
from typing import NamedTuple

_OPENING = re.compile(r"\t(?P<kind>[a-z ]+?) (?P<name>\S+) \{")
# The order in which a listing is read: what rules refer to comes before the rules.
_ORDER = {"set": 1, "map": 1, "chain": 2}
HOOK = re.compile(r"^\t\ttype .*$", re.MULTILINE)


class Name(NamedTuple):
    """What an object of a table is, and what it is called: ``("set", "owned4")``, ``("ct timeout", "tcp4")``."""

    kind: str
    name: str


class Listing(NamedTuple):
    """A table without its elements: what is said of the table itself, and the text of each object in it."""

    head: str
    objects: dict[Name, str]

    def hook(self, chain: Name) -> str:
        """Return where a chain is hooked in; empty for one that others jump to."""
        found = HOOK.search(self.objects[chain])
        return found[0] if found else ""


def parse_listing(text: str) -> Listing:
    """Return a listing by its objects; comments and empty lines are left out."""
    head: list[str] = []
    objects: dict[Name, str] = {}
    lines = iter(text.splitlines())
    for line in lines:
        if opening := _OPENING.fullmatch(line):
            body = [line]
            while body[-1] != "\t}":
                body.append(next(lines))
            objects[Name(opening["kind"], opening["name"])] = "\n".join(body)
        elif line.strip() and not line.strip().startswith("#"):
            head.append(line)
    return Listing("\n".join(head), objects)


def ordered_listing(text: str) -> str:
    """Return the same listing with its objects in one order, however the table came to be."""
    listing = parse_listing(text)
    first, *rest = listing.head.splitlines() or [""]
    names = sorted(listing.objects, key=lambda name: (_ORDER.get(name.kind, 0), name))
    blocks = [listing.objects[name] for name in names]
    return "\n".join((first, *rest[:-1], "\n\n".join(blocks), *rest[-1:])) + "\n"
