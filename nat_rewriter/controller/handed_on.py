"""Findings that an answer to early demux has settled: the live table of ``[route]`` is asked, not the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nat_rewriter.model.findings import Finding, Kind

if TYPE_CHECKING:
    from nat_rewriter.kernel.route_table import HandedOn


def without_handed_on(found: Sequence[Finding], table: str) -> list[Finding]:
    """Return the findings without captured replies that are handed to a tunnel before the IP layer sees them.

    The entry of a flow outlives the time in which its replies were captured. Nothing is asked where there is no such
    finding.
    """
    if not any(finding.kind is Kind.REPLY_CAPTURED for finding in found):
        return list(found)
    ports = read_handed_on(table)
    return [finding for finding in found if not _is_settled(finding, ports)]


def read_handed_on(table: str) -> list[HandedOn]:
    """Return the ports whose replies to the tunnel are handed on now."""
    from nat_rewriter.kernel.route_table import RouteNft, handed_on
    from nat_rewriter.render.route import route_table_name

    with RouteNft() as nft:
        live = nft.find_table(route_table_name(table))
    return handed_on(live[1]) if live and live[0] == "netdev" else []


def _is_settled(finding: Finding, ports: Sequence[HandedOn]) -> bool:
    one = finding.tuple
    if finding.kind is not Kind.REPLY_CAPTURED or one is None:
        return False
    return any((one.src, one.protocol) == (each.address, each.protocol) and one.sport in each.ports for each in ports)
