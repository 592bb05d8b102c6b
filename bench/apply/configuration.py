"""Configurations of many slices, each with a client of its own, and the other ways to write the same in nft."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

BLOCKS = 63  # slices of an address
SIZE = 1024
FIRST_PORT = 1024
_FIRST = {4: (int(IPv4Address("198.18.0.1")), int(IPv4Address("10.0.0.1"))),
          6: (int(IPv6Address("2001:db8::1")), int(IPv6Address("fd00::1")))}  # fmt: skip


def address_of(number: int, family: int) -> str:
    """Return the address of a slice."""
    return _text(_FIRST[family][0] + number // BLOCKS, family)


def client_of(number: int, family: int) -> str:
    """Return the client that is rewritten into a slice."""
    return _text(_FIRST[family][1] + number, family)


def ports_of(number: int, *, narrower: bool = False) -> str:
    """Return the ports of a slice, or all but the last."""
    first = FIRST_PORT + number % BLOCKS * SIZE
    return f"{first}-{first + SIZE - 1 - narrower}"


def configuration(count: int, family: int, changed: int | None = None) -> str:
    """Return a configuration of so many slices and rules.

    The changed slice has a port less with IPv4, and an address of its own with IPv6, where a range of its own would be
    a change of rules.
    """
    return "\n".join(_tables(count, family, changed))


def one_rule_a_slice(count: int, family: int) -> str:
    """Return the rewriting alone as one writes it by hand: a rule for each client."""
    ip = "ip6" if family == 6 else "ip"
    rules = (
        f"meta l4proto {{ tcp, udp }} {ip} saddr {client_of(one, family)} "
        f"snat {ip} to {_bracketed(address_of(one, family), family)}:{ports_of(one)}"
        for one in range(count)
    )
    head = "table inet by_hand\ndelete table inet by_hand\ntable inet by_hand {\nchain srcnat {\n"
    return head + "type nat hook postrouting priority 100;\n" + "\n".join(rules) + "\n}\n}\n"


def _tables(count: int, family: int, changed: int | None) -> Iterator[str]:
    yield "version = 1\n"
    for one in range(count):
        address = address_of(count + BLOCKS if one == changed and family == 6 else one, family)
        ports = ports_of(one, narrower=one == changed and family == 4)
        yield f'[[slice]]\nname = "s{one}"\naddress = "{address}"\nports = ["{ports}"]\n'
    for one in range(count):
        yield f'[[snat]]\nname = "c{one}"\nsource = ["{client_of(one, family)}"]\nslices = ["s{one}"]\n'


def _bracketed(address: str, family: int) -> str:
    return f"[{address}]" if family == 6 else address


def _text(number: int, family: int) -> str:
    return str(IPv6Address(number) if family == 6 else IPv4Address(number))
