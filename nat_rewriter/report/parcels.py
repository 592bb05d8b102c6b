"""Flows on their way to another host: the lines of a listing, compressed, behind one that says what they are."""

from __future__ import annotations

import json
import zlib
from typing import Any

from numpy.typing import NDArray

from nat_rewriter.errors import NatctlError
from nat_rewriter.model.flows import Flow, Origin
from nat_rewriter.report.flow_text import flow_json_lines
from nat_rewriter.report.json_lines import json_line
from nat_rewriter.report.listed_flows import read_listing

_VERSION = 1
_MOST_BYTES = 1 << 30  # of lines
_READ = "read moved flows"


def pack_flows(flows: NDArray[Any]) -> bytes:
    """Return forwarded flows, records of FLOW_FIELDS, as bytes: some 30 for each."""
    head = json_line({"version": _VERSION, "flows": len(flows)}) + "\n"
    lines = flow_json_lines(flows, [None] * len(flows), [Origin.FORWARDED] * len(flows))
    return zlib.compress((head + "".join(lines)).encode(), 1)


def unpack_flows(packed: bytes) -> list[Flow]:
    """Return flows that another host has packed. Raises NatctlError for what is not whole, or of no known version."""
    try:
        reading = zlib.decompressobj()
        head, *lines = reading.decompress(packed, _MOST_BYTES).decode().splitlines()
        told = json.loads(head)
        version, count = told["version"], told["flows"]
    except (zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise NatctlError(_READ, f"not what natctl packs: {error}") from None
    if version != _VERSION:
        raise NatctlError(_READ, f"packed by another natctl, expected version {_VERSION}", version)
    if not reading.eof or len(lines) != count:
        raise NatctlError(_READ, f"{len(lines)} flows of {count} arrived")
    return [each.flow for each in read_listing(lines)]
