"""The order of the stations on a packet's way, for a socket of this host, a forwarded packet and an unsolicited one."""

from __future__ import annotations

from collections.abc import Sequence

from nat_rewriter.explain.hooks import CONNTRACK_PRIORITY, BaseChain, chains_at
from nat_rewriter.explain.passage import Fate, Passage, Step, Verdict
from nat_rewriter.explain.ports import ranges_text
from nat_rewriter.explain.source_nat import Account
from nat_rewriter.explain.stations import CHAINS, Accountant, at_conntrack, at_dstnat
from nat_rewriter.model.flows import Origin

_NAT = BaseChain("nat", "nat", "prerouting", -100)


def travel(passage: Passage, chains: Sequence[BaseChain]) -> None:
    """Let a packet pass its stations in order, until one of them ends its way; the passage holds what was told."""
    _tell(passage, "packet", None, "begin", (Verdict.PASSES, _beginning(passage)))
    if passage.origin is Origin.LOCAL:
        _pass_hook(passage, "output", chains)
    else:
        _pass_hook(passage, "prerouting", _with_nat(passage, chains))
        if _route(passage):
            return _deliver(passage, chains)
        _pass_hook(passage, "forward", chains)
    _pass_hook(passage, "postrouting", chains)
    if not passage.ended:
        _leave(passage)
    return None


def _beginning(passage: Passage) -> str:
    now, packet = passage.now, passage.packet
    if passage.candidate is not None:
        return f"a client sends to {now.destination}"
    if passage.origin is Origin.LOCAL:
        return f"a socket of this host sends {now.protocol} from {now.source} to {now.destination}"
    by = f" by {packet.iifname}" if packet.iifname else ""
    return f"{now.protocol} from {now.source} to {now.destination} comes in{by}"


def _with_nat(passage: Passage, chains: Sequence[BaseChain]) -> Sequence[BaseChain]:
    """Return the chains, and the kernel's NAT where an entry translates and no chain stands for it."""
    there = any(chain.type == "nat" and chain.hook == "prerouting" for chain in chains)
    if there or passage.entry is None or passage.translated.dst == passage.now.dst:
        return chains
    return [*chains, _NAT]


def _pass_hook(passage: Passage, hook: str, chains: Sequence[BaseChain]) -> None:
    if passage.ended:
        return
    if hook in ("prerouting", "output"):
        _tell(passage, hook, CONNTRACK_PRIORITY, "conntrack", at_conntrack(passage))
    for chain in chains_at(chains, hook):
        if not passage.ended:
            _tell(passage, hook, chain.priority, chain.name, _account_of(chain)(passage))


def _account_of(chain: BaseChain) -> Accountant:
    return at_dstnat if chain is _NAT else CHAINS[chain.name]


def _route(passage: Passage) -> bool:
    """Tell the routing decision; return whether the packet is for this host."""
    if passage.ended:
        return False
    sent_on = passage.now.dst != passage.packet.tuple.dst
    asked = passage.situation.destination_local
    local = not sent_on and (passage.to_soft if asked is None else asked)
    oif = passage.packet.oifname
    where = "for this host" if local else "to be forwarded" + (f" by {oif}" if oif and not sent_on else "")
    _tell(passage, "routing", None, "routing", (Verdict.PASSES, f"{passage.now.destination} is {where}"))
    return local


def _deliver(passage: Passage, chains: Sequence[BaseChain]) -> None:
    _pass_hook(passage, "input", chains)
    if passage.ended:
        return
    if passage.fate is Fate.UNCHANGED:
        passage.settle(Fate.DELIVERED, "delivered to this host")
    _tell(passage, "socket", None, "end", (Verdict.PASSES, _listener(passage)))


def _listener(passage: Passage) -> str:
    wanted = passage.now.reversed()
    if passage.situation.sockets is None or wanted.has_echo_id:
        return f"delivered to {wanted.source}"
    own = passage.situation.sockets_at(wanted)
    if not own:
        return f"no socket is bound to {wanted.source}: answered with a reset or port unreachable"
    holder = f" of {own[0].owner.command} ({own[0].owner.pid})" if own[0].owner else ""
    return f"delivered to the socket{holder}, {own[0].state}"


def _leave(passage: Passage) -> None:
    if passage.entry is None:
        text = "the entry of the flow is recorded: from now on it holds the tuple"
        _tell(passage, "postrouting", None, "confirm", (Verdict.RECORDS, text))
    by = f" by {passage.packet.oifname}" if passage.packet.oifname else ""
    text = f"leaves{by} as {passage.now.protocol} {_source(passage)} to {passage.now.destination}"
    _tell(passage, "wire", None, "end", (Verdict.PASSES, text))


def _source(passage: Passage) -> str:
    """Return the source on the wire, with ranges where the port is not known."""
    if all(len(ports) == 1 for ports in passage.ports):
        return passage.now.source
    host = f"[{passage.now.src}]" if passage.now.src.version == 6 else str(passage.now.src)
    return f"{host}:{ranges_text(passage.ports)}"


def _tell(passage: Passage, hook: str, priority: int | None, station: str, account: Account) -> None:
    passage.steps.append(Step(hook, priority, station, *account))
