"""The ways to hold a tuple: against whom each protects, what it needs, and where it stops."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from nat_rewriter.errors import UsageError
from nat_rewriter.model.policy import Coexist

AUTO = "auto"


class Holder(enum.Enum):
    """The kind of socket that stands for a lease before it is connected."""

    NONE = "none"
    FAST_OPEN = "fast-open"
    REPAIR = "tcp-repair"
    EXCLUSIVE = "exclusive"  # UDP: bound, shared with nobody, and connected


@dataclass(frozen=True, slots=True)
class Strategy:
    """A way to hold a tuple.

    ``against_nat`` and ``against_sockets``: whether NAT flows, and other sockets of this host, are kept off the tuple
    from the moment it is acquired. ``entry``: whether a conntrack entry reserves it. ``needs``: a capability, or
    nothing. ``gap``: who is not kept off, in a sentence.
    """

    name: str
    summary: str
    gap: str
    against_nat: bool
    against_sockets: bool
    needs: str = "CAP_NET_ADMIN"
    protocols: tuple[str, ...] = ("tcp", "udp")
    entry: bool = False
    holder: Holder = Holder.NONE
    holds: bool = True  # false: the port is chosen when the socket connects

    @property
    def protects(self) -> str:
        """Against whom it protects, in words."""
        kept = [name for name, off in (("NAT flows", self.against_nat), ("local sockets", self.against_sockets)) if off]
        return " and ".join(kept) or "nobody before the connection stands"


RESERVATION = Strategy(
    "reservation",
    "a conntrack entry has the tuple: NAT avoids it, and the socket that connects takes the entry over",
    "any local socket that binds the port may connect and so take the reservation",
    against_nat=True,
    against_sockets=False,
    entry=True,
)
TCP_REPAIR = Strategy(
    "tcp-repair",
    "a socket under TCP_REPAIR has the tuple, in ESTABLISHED, with nothing sent",
    "NAT does not see it; another socket that shares the port has an instant when the placeholder connects",
    against_nat=False,
    against_sockets=True,
    protocols=("tcp",),
    holder=Holder.REPAIR,
)
FAST_OPEN = Strategy(
    "fast-open",
    "a socket under TCP_FASTOPEN_CONNECT has the tuple, in SYN-SENT, with nothing sent, and connects as it is",
    "NAT does not see it before its SYN",
    against_nat=False,
    against_sockets=True,
    needs="",
    protocols=("tcp",),
    holder=Holder.FAST_OPEN,
)
PORT_RANGE = Strategy(
    "port-range",
    "the kernel picks a port of the slice that no local connection to the destination has (IP_LOCAL_PORT_RANGE)",
    "NAT flows that have the tuple already; nothing is held before the socket connects",
    against_nat=False,
    against_sockets=False,
    needs="",
    holds=False,
)
COMPLETE = Strategy(
    "complete",
    "a conntrack entry and a placeholder socket have the tuple",
    "for UDP the port is taken for every destination",
    against_nat=True,
    against_sockets=True,
    entry=True,
    holder=Holder.FAST_OPEN,
)
STRATEGIES = {each.name: each for each in (RESERVATION, TCP_REPAIR, FAST_OPEN, PORT_RANGE, COMPLETE)}


def find_strategy(name: str, protocol: str, coexist: Coexist, *, fast_open: bool = True) -> Strategy:
    """Return the strategy of that name, or the one that ``auto`` means here.

    Under ``split`` NAT never uses the sockets' part, so that a placeholder, which needs no capability, is enough; else
    both sides have to be kept off. ``fast_open``: whether the kernel lets clients use it. Raises UsageError for a name
    that is none, and for a strategy that is not one for the protocol.
    """
    if name == AUTO:
        return _suited(_automatic(protocol, coexist, fast_open), protocol, fast_open)
    found = STRATEGIES.get(name)
    if found is None:
        raise UsageError("choose strategy", f"expected one of {AUTO}, {', '.join(STRATEGIES)}", name)
    if protocol not in found.protocols:
        fit = ", ".join(each.name for each in STRATEGIES.values() if protocol in each.protocols)
        raise UsageError("choose strategy", f"is for TCP only, expected for {protocol} one of {AUTO}, {fit}", name)
    return _suited(found, protocol, fast_open)


def _suited(chosen: Strategy, protocol: str, fast_open: bool) -> Strategy:
    """Return the complete strategy with the placeholder that the protocol and the kernel allow."""
    if chosen is not COMPLETE or (protocol == "tcp" and fast_open):
        return chosen
    return replace(COMPLETE, holder=Holder.REPAIR if protocol == "tcp" else Holder.EXCLUSIVE)


def _automatic(protocol: str, coexist: Coexist, fast_open: bool) -> Strategy:
    if coexist is not Coexist.SPLIT:
        return COMPLETE
    if protocol == "tcp" and fast_open:
        return FAST_OPEN
    return PORT_RANGE


def list_lines() -> list[str]:
    """Return a line for each strategy: its name, what keeps off whom, and who is not kept off."""
    return [
        f"{each.name}: {each.summary}. Protects against {each.protects}. Not: {each.gap}."
        for each in STRATEGIES.values()
    ]
