"""Single values of a configuration: plain TOML value in, value of the model out, or the form that is expected."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple, TypeVar

from nat_rewriter.config.nft_words import NFT_WORDS
from nat_rewriter.model.policy import Network
from nat_rewriter.model.slices import Address, PortRange

E = TypeVar("E", bound=enum.Enum)

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,47}")
TABLE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,30}")
PORT_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
PREFIX = re.compile(r"[0-9a-fA-F:.]+(/[0-9]{1,3})?")
ENDPOINT = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<v4>[0-9.]+)):(?P<port>[0-9]{1,5})")

# dev_valid_name() in net/core/dev.c, less what nft's quoted strings give a meaning to and what is not ASCII.
INTERFACE = re.compile(r"""[!-~]{1,15}""")
INTERFACE_REFUSED = frozenset("/:*\"'\\")

MAPPED = IPv6Network("::ffff:0:0/96")
THIS_NETWORK = IPv4Network("0.0.0.0/8")
BROADCAST = IPv4Address("255.255.255.255")


class Unexpected(ValueError):
    """A value that does not have the accepted form; the text says what does."""


class Target(NamedTuple):
    """Where a DNAT rule sends packets; without a port they keep theirs."""

    address: Address
    port: int | None


def text(value: object) -> str:
    """Return any text, such as a name to be looked up."""
    if not isinstance(value, str):
        raise Unexpected("a name in quotes")
    return value


def name(value: object) -> str:
    """Return the name of a slice or rule, safe in nft, in labels and in file names."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise Unexpected('a name of 1 to 48 letters, digits, "_", "." or "-" that starts with a letter, e.g. "ams-1"')
    return value


def table_name(value: object) -> str:
    """Return the name of an nft table that is no word of nft's grammar."""
    if not isinstance(value, str) or not TABLE_NAME.fullmatch(value):
        raise Unexpected('1 to 31 letters, digits or "_" that start with a letter, e.g. "natctl"')
    if value in NFT_WORDS:
        raise Unexpected('a name that is not a keyword of nft, e.g. "natctl"')
    return value


def interface(value: object) -> str:
    """Return the name of one network interface."""
    form = 'an interface name of 1 to 15 ASCII characters without space, quote, "/", ":" or backslash, e.g. "eth0"'
    if isinstance(value, str) and "*" in value:
        raise Unexpected('a whole interface name: there are no wildcards, list each one, e.g. ["eth0", "eth1"]')
    if not isinstance(value, str) or not INTERFACE.fullmatch(value) or value in (".", ".."):
        raise Unexpected(form)
    if INTERFACE_REFUSED & set(value):
        raise Unexpected(form)
    return value


def integer(low: int, high: int, example: int) -> Callable[[object], int]:
    """Return the parser of integers from ``low`` to ``high``."""

    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise Unexpected(f"an integer from {low} to {high}, e.g. {example}")
        return value

    return parse


def bit(value: object) -> int:
    """Return a number of 32 bits of which one is set."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 32 or value & (value - 1):
        raise Unexpected("one bit of 32, e.g. 0x100")
    return value


def choice(kind: type[E]) -> Callable[[object], E]:
    """Return the parser of the words of an enum."""
    accepted = {member.value: member for member in kind}
    words = ", ".join(f'"{word}"' for word in accepted)

    def parse(value: object) -> E:
        if not isinstance(value, str) or value not in accepted:
            raise Unexpected(f"one of {words}")
        return accepted[value]

    return parse


def port_range(value: object) -> PortRange:
    """Return a range of ports from ``"9000-9009"``, ``"9000"`` or ``9000``."""
    plain = str(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 31 else value
    match = PORT_RANGE.fullmatch(plain) if isinstance(plain, str) else None
    if match is None:
        raise Unexpected('ports from 1 to 65535, e.g. "9000-9009" or "9000"')
    first, last = int(match[1]), int(match[2] or match[1])
    if not (1 <= first <= 65535 and 1 <= last <= 65535):
        raise Unexpected('ports from 1 to 65535, e.g. "9000-9009"')
    if first > last:
        raise Unexpected(f'a range with its lower port first, e.g. "{last}-{first}"')
    return PortRange(first, last)


def host_address(value: object) -> Address:
    """Return a unicast address that packets between hosts can carry."""
    form = 'an IPv4 or IPv6 address without prefix or zone, e.g. "198.51.100.10" or "2001:db8::10"'
    if not isinstance(value, str) or "%" in value:
        raise Unexpected(form)
    try:
        address = ip_address(value)
    except ValueError:
        raise Unexpected(form) from None
    _refuse_special(address)
    return address


def _refuse_special(address: Address) -> None:
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        raise Unexpected(f'an address that is not IPv4-mapped, here "{address.ipv4_mapped}"')
    if address.is_multicast:
        raise Unexpected('a unicast address, not a multicast one, e.g. "198.51.100.10"')
    if address.is_loopback:
        raise Unexpected("an address that packets can leave the host with, not a loopback one")
    if address.is_unspecified or address == BROADCAST or (address.version == 4 and address in THIS_NETWORK):
        raise Unexpected('the address of a host, e.g. "198.51.100.10" or "2001:db8::10"')
    if address.version == 6 and address.is_link_local:
        raise Unexpected("an address that is not link-local: those mean nothing without an interface")


def network(value: object) -> Network:
    """Return a network from strict CIDR notation; a bare address is a network of one."""
    form = 'a network or an address, e.g. "10.0.0.0/24", "2001:db8::/64" or "10.0.0.2"'
    if not isinstance(value, str) or not PREFIX.fullmatch(value):
        raise Unexpected(form)
    try:
        parsed = ip_network(value, strict=False)
    except ValueError:
        raise Unexpected(form) from None
    if "/" in value and ip_address(value.partition("/")[0]) != parsed.network_address:
        raise Unexpected(f'a network without host bits, here "{parsed}"')
    if isinstance(parsed, IPv6Network) and parsed.subnet_of(MAPPED):
        raise Unexpected("a network that is not IPv4-mapped: no packet carries those addresses")
    return parsed


def target(value: object) -> Target:
    """Return an address, or an address and a port, from ``"10.0.0.2"``, ``"10.0.0.2:80"`` or ``"[2001:db8::2]:80"``."""
    match = ENDPOINT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        try:
            return Target(host_address(value), None)
        except Unexpected as error:
            raise Unexpected(f'{error}, with a port "10.0.0.2:80" or "[2001:db8::2]:80"') from None
    if not 1 <= int(match["port"]) <= 65535:
        raise Unexpected('a port from 1 to 65535 after the address, e.g. "10.0.0.2:80"')
    address = host_address(match["v4"] or match["v6"])
    if match["v6"] and address.version == 4:
        raise Unexpected(f'brackets around IPv6 addresses only, here "{address}:{match["port"]}"')
    return Target(address, int(match["port"]))


def shown(value: object) -> str:
    """Return a value as it stands in the file, on one line and not longer than a line."""
    written = _written(value)
    return written if len(written) <= 80 else f"{written[:79]}…"


def _written(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 128 else hex(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return f"[{', '.join(_written(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{quoted(key)} = {_written(item)}' for key, item in value.items())} }}"
    return str(value)


def quoted(value: str) -> str:
    """Return text as a TOML string; what a terminal would not print is escaped."""
    import json

    return json.dumps(value, ensure_ascii=not value.isprintable())
