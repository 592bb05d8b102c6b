"""Asks the kernel what an explanation needs, as far as it may be asked, and explains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from nat_rewriter.errors import NatctlError
from nat_rewriter.explain import (
    Claim,
    Explanation,
    Kind,
    Packet,
    SeenSocket,
    Situation,
    Subject,
    Table,
    explain,
    subject_of,
)
from nat_rewriter.kernel import conntrack
from nat_rewriter.kernel.claims import Claimed, read_claim
from nat_rewriter.kernel.conntrack import FlowFilter, TupleFilter
from nat_rewriter.kernel.nft import KernelNft
from nat_rewriter.kernel.route_lookup import Route, find_route
from nat_rewriter.kernel.sockets import find_owners, list_sockets
from nat_rewriter.listing import ordered_listing
from nat_rewriter.model.flows import Flow, address_from_halves, flow_from_record
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.sockets import SOCKET_STATES
from nat_rewriter.model.tuples import FlowTuple, protocol_name
from nat_rewriter.render import render

T = TypeVar("T")


def explain_packet(policy: Policy, packet: Packet) -> Explanation:
    """Explain a packet in this network namespace; what could not be asked is told in the explanation."""
    unanswered: list[str] = []
    subject = _with_interfaces(subject_of(packet, policy), unanswered)
    return explain(policy, subject, _look(policy, subject, unanswered))


def _ask(what: str, question: Callable[[], T], unanswered: list[str]) -> T | None:
    """Return an answer of the kernel; where it refuses, note why and return None."""
    try:
        return question()
    except NatctlError as error:
        unanswered.append(f"{what}: {error}")
        return None


def _with_interfaces(subject: Subject, unanswered: list[str]) -> Subject:
    """Fill in the interfaces that were not given: those that the routes to both ends lead through."""
    packet = subject.packet
    if packet.oifname is None:
        packet = replace(packet, oifname=_interface(_route_to(packet, unanswered)))
    if packet.iifname is None and subject.kind is Kind.CLIENT:
        back = _ask("route to the source", lambda: find_route(packet.tuple.src), unanswered)
        packet = replace(packet, iifname=_interface(back) if back and not back.local else None)
    return replace(subject, packet=packet)


def _route_to(packet: Packet, unanswered: list[str]) -> Route | None:
    return _ask("route to the destination", lambda: find_route(packet.tuple.dst, packet.mark), unanswered)


def _interface(route: Route | None) -> str | None:
    return route.interface if route else None


def _look(policy: Policy, subject: Subject, unanswered: list[str]) -> Situation:
    packet, wanted = subject.packet, subject.packet.tuple
    flows = _ask("conntrack", lambda: list(_list_flows(wanted)), unanswered)
    sockets = _ask("sockets", lambda: _list_sockets(wanted), unanswered)
    wire = _on_the_wire(flows or [], wanted) if subject.kind is Kind.CLIENT else wanted
    claimed = _ask("table", lambda: read_claim(policy.controller.table, wire), unanswered)
    there = _route_to(packet, unanswered)
    here = _ask("route to the source", lambda: find_route(wanted.src), unanswered)
    return Situation(
        flows=flows,
        sockets=sockets,
        claim=Claim(claimed.timeout_s, claimed.expires_s) if claimed and claimed.element else None,
        claims_known=bool(claimed and claimed.has_claims),
        table=_table_state(policy, claimed, unanswered),
        source_local=here.local if here else None,
        destination_local=there.local if there else None,
        unanswered=tuple(dict.fromkeys(unanswered)),
    )


def _list_flows(wanted: FlowTuple) -> Iterator[Flow]:
    """Yield the entries that touch a tuple: those of its destination, in either direction, and those of its source.

    The kernel compares, so that a table of a million entries is not read.
    """
    echo = wanted.has_echo_id
    there = TupleFilter(src=wanted.dst, sport=None if echo else wanted.dport)
    here = TupleFilter(src=wanted.src, sport=None if echo else wanted.sport)
    seen: set[tuple[int, FlowTuple]] = set()
    for original, reply in ((there, None), (None, there), (here, None), (None, here)):
        asked = FlowFilter(
            protocol=wanted.protocol, original=original or TupleFilter(), reply=reply or TupleFilter()
        )  # fmt: skip
        for record in conntrack.dump(asked):
            flow = flow_from_record(record)
            if (flow.zone, flow.original) not in seen:
                seen.add((flow.zone, flow.original))
                yield flow


def _list_sockets(wanted: FlowTuple) -> list[SeenSocket]:
    """Return the sockets on the source port of a tuple, with the processes that hold them."""
    if wanted.protocol not in ("tcp", "udp"):
        return []
    found = [_seen(one) for one in list_sockets([wanted.protocol]) if int(one["sport"]) == wanted.sport]
    owners = find_owners([one.inode for one in found])
    return [replace(one, owner=owners.get(one.inode)) for one in found]


def _seen(record: Any) -> SeenSocket:
    family = int(record["family"])
    return SeenSocket(
        state=_state(int(record["state"]), protocol_name(int(record["protocol"])), int(record["dport"])),
        protocol=protocol_name(int(record["protocol"])),
        src=address_from_halves(record["src"], family),
        sport=int(record["sport"]),
        dst=address_from_halves(record["dst"], family),
        dport=int(record["dport"]),
        inode=int(record["inode"]),
        uid=int(record["uid"]),
    )


def _state(number: int, protocol: str, peer_port: int) -> str:
    """Return a socket's state; one of UDP without a peer is bound, which the kernel calls closed."""
    if protocol == "udp" and not peer_port:
        return "BOUND"
    return SOCKET_STATES[number] if number < len(SOCKET_STATES) else str(number)


def _on_the_wire(flows: list[Flow], wanted: FlowTuple) -> FlowTuple:
    """Return the tuple that the flow of a client has on the wire, or the tuple itself."""
    return next((flow.reply.reversed() for flow in flows if flow.original == wanted), wanted)


def _table_state(policy: Policy, claimed: Claimed | None, unanswered: list[str]) -> Table:
    if claimed is None:
        return Table.UNKNOWN
    if claimed.listing is None:
        return Table.ABSENT
    meant = _ask("table", lambda: _listing_meant(policy), unanswered)
    if meant is None:
        return Table.UNKNOWN
    return Table.LIVE if meant == ordered_listing(claimed.listing) else Table.DIFFERS


def _listing_meant(policy: Policy) -> str:
    wanted = render(policy)
    with KernelNft() as nft:
        return nft.listing_of(wanted.table, wanted.skeleton)
