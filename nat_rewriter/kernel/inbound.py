"""The nft tables by which packets for shared addresses are handed over, and what a host tells others of its device."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence

from nat_rewriter.errors import NatctlError, NetlinkError, NftError
from nat_rewriter.kernel.nft import KernelNft
from nat_rewriter.model.inbound import Holders, Inbound, Peer
from nat_rewriter.model.pools import Block, Pool
from nat_rewriter.model.slices import Address
from nat_rewriter.render.inbound import (
    TABLE_FAMILIES,
    given_text,
    inbound_changes,
    inbound_table_name,
    render_inbound,
)

_SIOCGIFHWADDR = 0x8927
_ETHERNET = 1  # ARPHRD_ETHER
_IFREQ = struct.Struct("=16sH6s16x")  # struct ifreq with ifr_hwaddr: net/if.h


class Handover(KernelNft):
    """The tables of this host, in the namespace in which it is made. ``table`` is the controller's."""

    def __init__(self, table: str, host: str = "") -> None:
        super().__init__()
        self._table, self._host = table, host
        self._pools: Sequence[Pool] = ()
        self._rules, self._there = "", Holders()
        self._devices: dict[str, int] = {}

    def raise_up(self, pools: Sequence[Pool], inbound: Inbound, holders: Holders) -> None:
        """Put the tables in place, in one transaction with what belongs into them."""
        self._pools = pools
        self._rules = render_inbound(self._table, pools, inbound, host=True)
        self._devices = _numbers(inbound.devices)
        self._load_all(holders)

    def stands(self) -> bool:
        """Tell whether the tables are there, for the devices that are there now: rules have their numbers."""
        same = _numbers(self._devices) == self._devices
        return same and self.find_listing("netdev", inbound_table_name(self._table)) is not None

    def update(self, holders: Holders, given: Mapping[Block, Address], given_s: int) -> None:
        """Change what differs, in one transaction; ``given`` are blocks that were this host's, and where each is."""
        changes = inbound_changes(self._table, self._pools, self._there, holders, self._host)
        if not changes and not given:
            return
        try:
            self._ask("load ruleset", text="\n".join([changes, given_text(self._table, given, given_s)]))
        except NftError:
            self._load_all(holders)  # somebody else was at it
        self._there = holders

    def _load_all(self, holders: Holders) -> None:
        filled = inbound_changes(self._table, self._pools, Holders(), holders, self._host)
        self._ask("load ruleset", text="\n".join([*_deletion(self._table), self._rules, filled]))
        self._there = holders

    def take_down(self) -> None:
        """Take the tables away; none there is no error."""
        self._ask("delete table", text="\n".join(_deletion(self._table)))


def own_peer(host: str, inbound: Inbound) -> Peer:
    """Return where others reach this host. Raises NatctlError for addresses that are not its own, NetlinkError."""
    for address in inbound.addresses:
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            try:
                sock.bind((str(address), 0))
            except OSError:
                raise NatctlError("tell where this host is", "not one of its addresses", str(address)) from None
    return Peer(host, inbound.addresses, link_address(inbound.device))


def link_address(device: str) -> str:
    """Return the link-layer address of an Ethernet device of this namespace. Raises NetlinkError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock, _SIOCGIFHWADDR, _IFREQ.pack(device.encode(), 0, b""))
        except OSError as error:
            code = error.errno or errno.EIO
            raise NetlinkError("read link-layer address", code, f"{os.strerror(code).lower()}: {device!r}") from None
    _, kind, link = _IFREQ.unpack(answer)
    if kind != _ETHERNET:
        raise NetlinkError("read link-layer address", errno.EAFNOSUPPORT, f"not an Ethernet device: {device!r}")
    return bytes(link).hex(":")


def _numbers(devices: Iterable[str]) -> dict[str, int]:
    """Return the numbers that devices have now; those that are not there are left out."""
    there = {name: number for number, name in socket.if_nameindex()}
    return {name: there[name] for name in devices if name in there}


def _deletion(table: str) -> list[str]:
    # Adding it first makes the deletion right whether or not the table is there.
    name = inbound_table_name(table)
    return [f"{verb} table {family} {name}" for family in TABLE_FAMILIES for verb in ("add", "delete")]
