"""Captured netlink messages: ``messages/NAME.hex`` as the kernel wrote them, ``messages/NAME.json`` what they say.

They were read from netlink sockets on Linux 6.18, x86-64, while real packets flowed (see tests/netns/own_network.py).
"""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from nat_rewriter.kernel.conntrack import decode
from nat_rewriter.kernel.sockets import decode_sockets
from nat_rewriter.model.flows import Event, Present, Status, address_from_halves

MESSAGES = Path(__file__).parent / "messages"
NAMES = sorted(path.stem for path in MESSAGES.glob("*.hex"))


def message(name: str) -> bytes:
    """Return the bytes of a captured message."""
    lines = (MESSAGES / f"{name}.hex").read_text(encoding="ascii").splitlines()
    return bytes.fromhex("".join(line for line in lines if not line.startswith("#")))


def expected(name: str) -> dict[str, Any]:
    """Return what a captured message says."""
    found: dict[str, Any] = json.loads((MESSAGES / f"{name}.json").read_text(encoding="utf-8"))
    return found


def described(name: str, data: bytes) -> dict[str, Any]:
    """Decode and return in the words of the JSON files; what a message is follows from its name."""
    if name.startswith("socket-"):
        sockets = decode_sockets(data, name.split("-")[1])
        return {"records": [_plain(record) for record in sockets.records], "done": sockets.done}
    decoded = decode(data, events=name.startswith("event-"))
    return {
        "records": [_flow(record) for record in decoded.records],
        "done": decoded.done,
        "error": decoded.error,
        "unknown_attributes": decoded.unknown_attributes,
        "foreign_messages": decoded.foreign_messages,
    }


def _flow(record: Any) -> dict[str, Any]:
    named = _plain(record)
    named["event"] = Event(named["event"]).name
    named["present"] = [bit.name for bit in Present if bit & named["present"]]
    named["status"] = Status(named["status"]).names()
    return named


def _plain(record: Any) -> dict[str, Any]:
    names = [name for name in record.dtype.names if name != "key" and not name.startswith("reserved")]
    return {name: _value(record, name) for name in names}


def _value(record: Any, name: str) -> Any:
    if name.endswith(("src", "dst")):
        address: IPv4Address | IPv6Address = address_from_halves(record[name], int(record["family"]))
        return str(address)
    return record[name].tolist()
