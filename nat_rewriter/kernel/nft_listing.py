"""What ``nft -j list table`` prints, as elements in the spelling of :mod:`nat_rewriter.render`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

RANGE_MAP = re.compile(r"^\tmap (\S+) \{\n\t\ttype [^\n:]* : interval ", re.MULTILINE)

DYNAMIC_SET = re.compile(r"^\tset (\S+) \{\n(?:\t\t[^\n]*\n)*?\t\tflags [^\n]*\bdynamic\b", re.MULTILINE)


def dynamic_sets(listing: str) -> list[str]:
    """Return the names of the sets that packets fill, out of a listing as text."""
    return DYNAMIC_SET.findall(listing)


def range_maps(listing: str) -> list[str]:
    """Return the names of the maps whose data holds ranges, out of a listing as text: the one in JSON does not say."""
    return RANGE_MAP.findall(listing)


def elements_of(listing: Iterable[Mapping[str, Any]], ranges: Collection[str] = ()) -> dict[str, dict[str, str]]:
    """Return the elements of every named set and map: name -> key -> data. ``ranges``: maps whose data holds them."""
    found: dict[str, dict[str, str]] = {}
    for entry in listing:
        for kind in ("set", "map"):
            if kind in entry:
                name = entry[kind]["name"]
                elements = dict(_element(one) for one in entry[kind].get("elem", ()))
                found[name] = {key: _as_range(data) for key, data in elements.items()} if name in ranges else elements
    return found


def _as_range(data: str) -> str:
    """Return address . port as address . port-port, which is how nft wants a lone port written there."""
    before, dot, ports = data.rpartition(" . ")
    return data if "-" in ports else f"{before}{dot}{ports}-{ports}"


def _element(one: Any) -> tuple[str, str]:
    if isinstance(one, list):  # an element of a map
        return _spell(one[0]), _spell(one[1])
    if isinstance(one, Mapping) and "elem" in one:  # an element with state: a packet put it there
        return _stateful(one["elem"]), ""
    return _spell(one), ""


def _stateful(element: Mapping[str, Any]) -> str:
    """Return key, counter, timeout and what is left of it, in the order nft reads them."""
    parts = [_spell(element["val"])]
    if counter := element.get("counter"):
        parts.append(f"counter packets {counter['packets']} bytes {counter['bytes']}")
    parts += [f"{word} {element[word]}s" for word in ("timeout", "expires") if word in element]
    return " ".join(parts)


def _spell(value: Any) -> str:
    if isinstance(value, Mapping):
        ((word, inner),) = value.items()
        return _SPELLINGS[word](inner)
    return str(value)


_SPELLINGS: dict[str, Callable[[Any], str]] = {
    "concat": lambda fields: " . ".join(_spell(field) for field in fields),
    "range": lambda ends: f"{_spell(ends[0])}-{_spell(ends[1])}",
    "prefix": lambda prefix: f"{prefix['addr']}/{prefix['len']}",
    "goto": lambda verdict: f"goto {verdict['target']}",
    "jump": lambda verdict: f"jump {verdict['target']}",
    "accept": lambda _: "accept",
    "drop": lambda _: "drop",
    "return": lambda _: "return",
}
