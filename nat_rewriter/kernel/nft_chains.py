"""Base chains of this network namespace, those of other tables among them."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import NamedTuple

from nat_rewriter.kernel.netlink import MESSAGE_HEADER, ask, message, read_attributes

# linux/netfilter/nfnetlink.h and nf_tables.h
_NETLINK_NETFILTER = 12
_GET_CHAINS = 10 << 8 | 4  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETCHAIN
_DUMP = 0x300
_FAMILY = struct.Struct(">BBH")  # struct nfgenmsg
_TABLE, _NAME, _HOOK, _USE, _TYPE = 1, 3, 4, 6, 7  # NFTA_CHAIN_*
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2  # NFTA_HOOK_*
_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting", "ingress")  # enum nf_inet_hooks
# Tables of the old iptables, which nf_tables does not know; readable by root alone.
LEGACY_TABLES = {"ip": Path("/proc/net/ip_tables_names"), "ip6": Path("/proc/net/ip6_tables_names")}


class BaseChain(NamedTuple):
    """A chain that a hook for IP packets calls, in nft's words, and how many rules it has."""

    family: str
    table: str
    name: str
    type: str
    hook: str
    priority: int
    rules: int = 1

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


def list_base_chains() -> list[BaseChain]:
    """Return the base chains of all tables of family inet, ip and ip6. Raises PermissionNeeded, NetlinkError.

    The kernel is asked, and for chains alone: what a newer nft wrote into sets and rules would crash this one.
    """
    answers = ask(_NETLINK_NETFILTER, message(_GET_CHAINS, _DUMP, _FAMILY.pack(socket.AF_UNSPEC, 0, 0)), "list chains")
    return [found for answer in answers if (found := _base_chain(answer[MESSAGE_HEADER:]))]


def list_legacy_nat_tables() -> list[str]:
    """Return the families in which iptables-legacy has a table that rewrites; none where that cannot be read."""
    return [family for family, path in LEGACY_TABLES.items() if "nat" in _words_of(path)]


def _base_chain(answer: bytes) -> BaseChain | None:
    """Return a chain, None where it is called by other chains only, or not for IP packets."""
    family = _FAMILIES.get(answer[0])
    told = read_attributes(answer[_FAMILY.size :])
    if family is None or _HOOK not in told:
        return None
    hook = read_attributes(told[_HOOK])
    # No chain can jump to a base chain: what uses it are its rules.
    return BaseChain(
        family, _text(told[_TABLE]), _text(told[_NAME]), _text(told[_TYPE]),
        _HOOKS[int.from_bytes(hook[_HOOK_NUMBER])], int.from_bytes(hook[_HOOK_PRIORITY], signed=True),
        int.from_bytes(told[_USE]),
    )  # fmt: skip


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode(errors="replace")


def _words_of(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []
