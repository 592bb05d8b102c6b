"""Base chains of this network namespace, those of other tables among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from nat_rewriter.errors import NftError, PermissionNeeded
from nat_rewriter.kernel.nft import Worker

ANSWER_WITHIN_S = 20.0
# Tables of the old iptables, which libnftables does not see; readable by root alone.
LEGACY_TABLES = {"ip": Path("/proc/net/ip_tables_names"), "ip6": Path("/proc/net/ip6_tables_names")}


class BaseChain(NamedTuple):
    """A chain that a hook calls, in nft's words."""

    family: str
    table: str
    name: str
    type: str
    hook: str
    priority: int

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


def list_base_chains() -> list[BaseChain]:
    """Return the base chains of all tables. Raises PermissionNeeded, NftError.

    ``list chains`` asks the kernel for tables and chains alone: sets that a newer nft wrote would crash this one.
    """
    worker = Worker([], ANSWER_WITHIN_S)
    try:
        answer = worker.ask(text="list chains", json=True)
    finally:
        worker.close()
    if "Operation not permitted" in answer["error"]:
        raise PermissionNeeded("list chains", "CAP_NET_ADMIN")
    if answer["code"]:
        raise NftError("list chains", 0, str(answer["error"]).strip().partition("\n")[0])
    listed = json.loads(answer["output"] or '{"nftables": []}')["nftables"]
    return [_base_chain(entry["chain"]) for entry in listed if "hook" in entry.get("chain", ())]


def list_legacy_nat_tables() -> list[str]:
    """Return the families in which iptables-legacy has a table that rewrites; none where that cannot be read."""
    return [family for family, path in LEGACY_TABLES.items() if "nat" in _words_of(path)]


def _base_chain(chain: dict[str, object]) -> BaseChain:
    family, table, name, kind, hook = (str(chain[key]) for key in ("family", "table", "name", "type", "hook"))
    return BaseChain(family, table, name, kind, hook, int(str(chain["prio"])))


def _words_of(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []
