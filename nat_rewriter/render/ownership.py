"""Elements that say what this host owns, and where a local flow may go inside its own slice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nat_rewriter.model.slices import PortRange, Protocol, Slice
from nat_rewriter.render.spelling import address_text, concat, port_data

PORT_PROTOCOLS = {Protocol.TCP: "tcp", Protocol.UDP: "udp"}


def keep_chain(ports: PortRange) -> str:
    """Return the name of the chain that keeps an IPv6 flow on its own address within a port range."""
    return f"keep6_{ports.first}_{ports.last}"


def soft_addresses(slices: Sequence[Slice]) -> dict[str, str]:
    """Return the soft-unicast addresses: elements of ``soft4`` or ``soft6``."""
    return {address_text(owned.address): "" for owned in slices}


def owned_ports(slices: Sequence[Slice]) -> dict[str, str]:
    """Return address . protocol . ports of every TCP and UDP slice: elements of ``owned4`` or ``owned6``."""
    return {f"{place} . {ports}": "" for owned, place in _places(slices) for ports in owned.ranges}


def rewritten_ports(slices: Sequence[Slice]) -> dict[str, str]:
    """Return the same without the ports that are kept for sockets: elements of ``rewrites4`` or ``rewrites6``."""
    return {f"{place} . {ports}": "" for owned, place in _places(slices) for ports in owned.rewrite_ranges}


def owned_echo(slices: Sequence[Slice]) -> dict[str, str]:
    """Return address . echo ids of every ICMP slice: elements of ``echo4`` or ``echo6``."""
    return {concat(owned.address, ports): "" for owned in _icmp_slices(slices) for ports in owned.ranges}


def confined_ports(slices: Sequence[Slice], family: int) -> dict[str, str]:
    """Map every owned range to itself: a local flow keeps a free port, and moves inside the range otherwise."""
    return {
        f"{place} . {ports}": own_range(owned, ports, family)
        for owned, place in _places(slices)
        for ports in parts_of(owned)
    }


def confined_echo(slices: Sequence[Slice], family: int) -> dict[str, str]:
    """Map every address to the largest range of its ICMP slice: where the echo ids of local pings go."""
    largest: dict[str, tuple[Slice, PortRange]] = {}
    for owned in _icmp_slices(slices):
        for ports in owned.ranges:
            best = largest.get(str(owned.address))
            if best is None or len(ports) > len(best[1]):
                largest[str(owned.address)] = (owned, ports)
    return {address: own_range(owned, ports, family) for address, (owned, ports) in largest.items()}


def spill_chain(owned: Slice, family: int) -> str:
    """Return the name of the chain that moves a port to any range of the slice."""
    return f"spill{family}_{owned.name}"


def spilled_ports(slices: Sequence[Slice], family: int) -> dict[str, str]:
    """Map the ranges of every slice that has several to its chain: elements of ``spill4`` or ``spill6``."""
    return {
        f"{place} . {ports}": f"goto {spill_chain(owned, family)}"
        for owned, place in _places(slices)
        if len(owned.ranges) > 1
        for ports in owned.ranges
    }


def keep_ranges(slices: Sequence[Slice]) -> list[PortRange]:
    """Return the distinct ranges of the slices: each is a chain, however many addresses share it (IPv6)."""
    return sorted({ports for owned in slices for ports in (*parts_of(owned), *owned.ranges)})


def own_range(owned: Slice, ports: PortRange, family: int) -> str:
    """Return the data that sends a local flow to a range of its own slice."""
    # A map cannot give an IPv6 address with a port range (nft 1.0.6 to 1.1.7), so there the range is a chain.
    return f"goto {keep_chain(ports)}" if family == 6 else port_data(owned.address, ports)


def _places(slices: Sequence[Slice]) -> Iterator[tuple[Slice, str]]:
    """Yield each TCP and UDP slice with what comes before the ports in a key: ``198.51.100.10 . tcp``."""
    for owned in slices:
        address = address_text(owned.address)
        for protocol, word in PORT_PROTOCOLS.items():
            if protocol in owned.protocols:
                yield owned, f"{address} . {word}"


def parts_of(owned: Slice) -> list[PortRange]:
    """Return the ranges that a port may not leave when it is moved: those for rewriting, and those for sockets."""
    return sorted((*owned.rewrite_ranges, *owned.socket_ranges)) if owned.socket_ranges else sorted(owned.ranges)


def _icmp_slices(slices: Sequence[Slice]) -> Iterator[Slice]:
    return (owned for owned in slices if Protocol.ICMP in owned.protocols)
