"""Flows as `flows --json` prints them, read back: what another host had, or a file says."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any, NamedTuple

from nat_rewriter.errors import NatctlError
from nat_rewriter.model.flows import TCP_STATES, Flow, Origin, Status
from nat_rewriter.model.tuples import PROTOCOL_NAMES, FlowTuple

_READ = "read flows"
_STATUS = {name: bit for bit in Status for name in bit.names()}
_PROTOCOLS = frozenset(PROTOCOL_NAMES.values())
_address = functools.lru_cache(1 << 16)(ip_address)  # many flows have few addresses


class ListedFlow(NamedTuple):
    """A flow of a listing: ``origin`` is None where the listing does not tell it."""

    flow: Flow
    origin: Origin | None


def read_listing(lines: Iterable[str]) -> list[ListedFlow]:
    """Return the flows of a listing, one JSON object a line. Raises NatctlError with the number of the line."""
    return [_listed(line, number) for number, line in enumerate(lines, 1) if line.strip()]


def _listed(line: str, number: int) -> ListedFlow:
    try:
        told = json.loads(line)
        origin = told.get("origin")
        return ListedFlow(_flow(told), None if origin is None else Origin(origin))
    except KeyError as error:
        raise NatctlError(_READ, f"line {number}: a flow without {error.args[0]}", line.strip()[:80]) from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise NatctlError(_READ, f"line {number}: no flow of natctl flows --json: {error}", line.strip()[:80]) from None


def _flow(told: dict[str, Any]) -> Flow:
    protocol, state = told["protocol"], told.get("state")
    if protocol not in _PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}")
    if (state is not None) != (protocol == "tcp") or (state is not None and state not in TCP_STATES):
        raise ValueError(f"state {state!r} of {protocol}")
    return Flow(
        _tuple(told["original"], protocol),
        _tuple(told["reply"], protocol),
        _status(tuple(told["status"])),
        id=0,
        zone=_number(told.get("zone", 0), 0xFFFF),
        mark=_number(told.get("mark", 0), 0xFFFFFFFF),
        state=state,
        timeout_s=_number(told.get("timeout_s", 0), 0x7FFFFFFF),
    )


def _tuple(told: dict[str, Any], protocol: str) -> FlowTuple:
    src, dst = _address(told["src"]), _address(told["dst"])
    if src.version != dst.version:
        raise ValueError(f"{src} to {dst}")
    if protocol in ("icmp", "icmpv6"):
        echo_id = _number(told["icmp_id"], 0xFFFF)
        return FlowTuple(protocol, src, echo_id, dst, echo_id)
    return FlowTuple(protocol, src, _number(told["sport"], 0xFFFF), dst, _number(told["dport"], 0xFFFF))


@functools.lru_cache
def _status(names: tuple[str, ...]) -> Status:
    found = Status(0)
    for name in names:
        if name not in _STATUS:
            raise ValueError(f"status {name!r}")
        found |= _STATUS[name]
    return found


def _number(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{value!r}, expected a number up to {most}")
    return value
