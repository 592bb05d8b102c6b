"""Records of history as JSON objects, as lines and as rows."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from typing import Any

from nat_rewriter.history.records import EndMark, StartMark, Trait
from nat_rewriter.model.flows import address_from_halves
from nat_rewriter.model.tuples import FlowTuple, protocol_name
from nat_rewriter.report.json_lines import tuple_object, without_absent

ANSWER_COLUMNS = ("protocol", "wire", "remote", "holder", "from", "until", "slice")
_SECOND = 1_000_000_000


def answer_object(record: Any, slices: tuple[str, ...]) -> dict[str, Any]:
    """Return a record as `history --json` prints it; times in UTC, absent fields left out."""
    traits = Trait(int(record["traits"]))
    end = EndMark(record["end_mark"])
    start = StartMark(record["start_mark"])
    fields = {
        "start": None if start is StartMark.UNKNOWN else utc_text(int(record["start_ns"])),
        "start_is": start.word,
        "end": None if end is EndMark.OPEN else utc_text(int(record["end_ns"])),
        "end_is": end.word,
        "protocol": protocol_name(int(record["protocol"])),
        "tuple": tuple_object(_tuple_of(record)),
        "holder": _holder_object(record, traits),
        "origin": "local" if Trait.LOCAL in traits else "forwarded",
        "direction": "in" if Trait.INBOUND in traits else "out",
        "slice": _slice_name(record, slices),
        "zone": int(record["zone"]),
        "packets": record["packets"].tolist() if Trait.COUNTED in traits else None,
        "bytes": record["bytes"].tolist() if Trait.COUNTED in traits else None,
    }
    return without_absent(fields)


def answer_row(record: Any, slices: tuple[str, ...], zone: tzinfo | None) -> tuple[str, ...]:
    """Return the cells of ANSWER_COLUMNS; times in a zone (None: the host's), with their offset."""
    wire = _tuple_of(record)
    return (
        wire.protocol,
        wire.source,
        wire.destination,
        _holder_text(record),
        _start_text(record, zone),
        _end_text(record, zone),
        _slice_name(record, slices) or "",
    )


def answer_line(record: Any, slices: tuple[str, ...], zone: tzinfo | None) -> str:
    """Return a record as one line of words."""
    protocol, wire, remote, holder, start, end, name = answer_row(record, slices, zone)
    arrow = "<-" if record["traits"] & Trait.INBOUND else "->"
    words = (protocol, wire, arrow, remote, "held by", holder, "from", start, "until", end, name)
    return " ".join(word for word in words if word)


def utc_text(moment_ns: int) -> str:
    """Return a time as ISO 8601 in UTC with microseconds."""
    whole = datetime.fromtimestamp(moment_ns // _SECOND, UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{moment_ns % _SECOND // 1000:06}Z"


def zone_text(moment_ns: int, zone: tzinfo | None) -> str:
    """Return a time of a zone (None: the host's) with milliseconds and offset."""
    local = datetime.fromtimestamp(moment_ns // _SECOND, zone).astimezone(zone)
    return f"{local:%Y-%m-%d %H:%M:%S}.{moment_ns % _SECOND // 1_000_000:03}{local:%z}"


def _tuple_of(record: Any) -> FlowTuple:
    family = int(record["family"])
    return FlowTuple(
        protocol_name(int(record["protocol"])),
        address_from_halves(record["wire"], family),
        int(record["wire_port"]),
        address_from_halves(record["remote"], family),
        int(record["remote_port"]),
    )


def _client_of(record: Any) -> FlowTuple:
    family = int(record["family"])
    address = address_from_halves(record["client"], family)
    return FlowTuple(protocol_name(int(record["protocol"])), address, int(record["client_port"]), address, 0)


def _holder_object(record: Any, traits: Trait) -> dict[str, Any]:
    client = _client_of(record)
    return without_absent(
        {
            "type": "local-flow" if Trait.LOCAL in traits else "nat-flow",
            "src": str(client.src),
            "sport": None if client.has_echo_id else client.sport,
            "icmp_id": client.sport if client.has_echo_id else None,
            "id": int(record["id"]),
            "pid": int(record["pid"]) or None,
            "command": _command(record) or None,
        }
    )


def _holder_text(record: Any) -> str:
    client = _client_of(record).source
    if record["traits"] & Trait.LOCAL == 0:
        return client
    if not record["pid"]:
        return f"this host, {client}"
    return f"this host, {_command(record)} (pid {record['pid']}), {client}"


def _command(record: Any) -> str:
    return bytes(record["command"]).decode(errors="replace")


def _slice_name(record: Any, slices: tuple[str, ...]) -> str | None:
    number = int(record["slice"])
    return slices[number - 1] if number else None


def _start_text(record: Any, zone: tzinfo | None) -> str:
    mark = StartMark(record["start_mark"])
    if mark is StartMark.UNKNOWN:
        return "unknown"
    text = zone_text(int(record["start_ns"]), zone)
    return f"before {text}" if mark is StartMark.FIRST_SIGHT else text


def _end_text(record: Any, zone: tzinfo | None) -> str:
    mark = EndMark(record["end_mark"])
    if mark is EndMark.OPEN:
        return "now"
    text = zone_text(int(record["end_ns"]), zone)
    if mark is EndMark.SEEN_GONE:
        return f"before {text}"
    return f"{text} or later (recording ended)" if mark is EndMark.RECORDING_ENDED else text
