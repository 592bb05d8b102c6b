"""Claims of flows that are there already: what a table made anew has to know before the first packet passes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nat_rewriter.model.flows import Status
from nat_rewriter.model.slices import Slice

Column = NDArray[Any]

PROTOCOLS = {6: "tcp", 17: "udp"}


def claims_of(flows: Column, slices: Sequence[Slice]) -> dict[str, dict[str, str]]:
    """Return the claims of rewritten flows on soft-unicast addresses: elements of ``claims4`` and ``claims6``.

    ``flows`` are records of FLOW_FIELDS. Each claim lives as long as conntrack will keep the entry.
    """
    claims: dict[str, dict[str, str]] = {"claims4": {}, "claims6": {}}
    soft: set[tuple[int, int]] = {(owned.address.version, int(owned.address)) for owned in slices}
    for here, there, rewritten in (
        ("reply_dst", "reply_src", Status.SRC_NAT),
        ("orig_dst", "orig_src", Status.DST_NAT),
    ):
        for family, key, timeout_s in _wire_tuples(flows, soft, here, there, rewritten):
            claims[f"claims{family}"][f"{key} timeout {timeout_s}s"] = ""
    return claims


def _wire_tuples(
    flows: Column, soft: set[tuple[int, int]], here: str, there: str, rewritten: Status
) -> Iterator[tuple[int, str, int]]:
    # The tuple on the wire, from the soft-unicast side: read off the reply tuple after SNAT, the original before DNAT.
    sides = {"reply_dst": ("reply_dport", "reply_sport"), "orig_dst": ("orig_dport", "orig_sport")}
    here_port, there_port = sides[here]
    candidates = flows[np.isin(flows["protocol"], list(PROTOCOLS)) & ((flows["status"] & rewritten) != 0)]
    for flow in candidates[_on_soft(candidates, soft, here)]:
        family = int(flow["family"])
        ends = (_address(flow[here], family), flow[here_port], _address(flow[there], family), flow[there_port])
        key = " . ".join(map(str, (PROTOCOLS[int(flow["protocol"])], *ends)))
        yield family, key, max(1, int(flow["timeout_s"]))


def _on_soft(flows: Column, soft: set[tuple[int, int]], field: str) -> Column:
    found = np.zeros(len(flows), dtype=bool)
    for family, number in soft:
        halves = flows[field]
        same = (halves[:, 0] == number >> 64) & (halves[:, 1] == number & ((1 << 64) - 1))
        found |= same & (flows["family"] == family)
    return found


def _address(halves: Column, family: int) -> IPv4Address | IPv6Address:
    return IPv6Address(int(halves[0]) << 64 | int(halves[1])) if family == 6 else IPv4Address(int(halves[1]))
