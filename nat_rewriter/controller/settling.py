"""Settling the guard: established flows pass it without a look once conntrack shows none that it would drop.

The set ``settled`` says for which protocols that is so. It is emptied before every change that may make a flow a
stray, and filled after it, so that natctl killed in between leaves a guard that looks at every packet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from ipaddress import ip_address

from nat_rewriter.errors import NatctlError
from nat_rewriter.kernel.nft import Nft
from nat_rewriter.model.ruleset import Elements, LiveTable, Ruleset
from nat_rewriter.model.slices import PortRange, Protocol, Slice
from nat_rewriter.model.transaction import AddElements, DeleteElements, Transaction
from nat_rewriter.plan import SetChange
from nat_rewriter.render.blocks import blocks_of
from nat_rewriter.render.table import SETTLED

PROTOCOLS: Mapping[str, int] = {"tcp": 6, "udp": 17}
_MOST_ADDRESSES = 4  # the kernel compares one address a dump: beyond it, one dump of everything is quicker


def lasting(elements: Elements) -> Elements:
    """Return elements without what is true only of the table that they were read from."""
    return {name: held for name, held in elements.items() if name != SETTLED}


def settled_protocols(live: LiveTable | None) -> Collection[str]:
    """Return the protocols whose established flows pass the guard of a table without a look."""
    return live.elements.get(SETTLED, {}) if live else ()


def is_unsettling(changes: Iterable[SetChange]) -> bool:
    """Tell whether flows that the guard let pass may be strays after a change of elements."""
    for change in changes:
        if change.set.startswith("soft") and change.added:
            return True
        if change.set.startswith("owned") and change.removed:
            return True
    return False


def unsettle(live: LiveTable | None, nft: Nft) -> None:
    """Let the guard of a table look at every packet."""
    if live and (settled := settled_protocols(live)):
        nft.run(Transaction((DeleteElements(live.table, SETTLED, tuple(settled)),)))


def find_strayless(wanted: Ruleset, slices: Sequence[Slice], settled: Collection[str] = ()) -> Sequence[str]:
    """Return the protocols that have no stray under a table in force; not those that are ``settled`` already.

    None where conntrack cannot be asked: the guard goes on to look.
    """
    return strayless([name for name in PROTOCOLS if name not in settled], slices) if SETTLED in wanted.elements else ()


def settle(wanted: Ruleset, protocols: Sequence[str], nft: Nft) -> None:
    """Let established flows of protocols pass the guard without a look."""
    if protocols:
        nft.run(Transaction((AddElements(wanted.table, SETTLED, dict.fromkeys(protocols, "")),)))


def strayless(asked: Sequence[str], slices: Sequence[Slice]) -> Sequence[str]:
    """Return those of the protocols that have no flow from an address of the slices outside of these; all are complete.

    None where conntrack cannot be asked.
    """
    if not asked:
        return ()
    try:
        strays = stray_protocols(slices)
    except NatctlError:
        return ()
    return [name for name in asked if PROTOCOLS[name] not in strays]


def owned_slices(elements: Elements) -> list[Slice]:
    """Return the slices of which a table says that they are owned, one for each range, without a name."""
    found = []
    for name in ("owned4", "owned6"):
        for key in elements.get(name, {}):
            address, protocol, ports = key.split(" . ")
            first, _, last = ports.partition("-")
            ranges = (PortRange(int(first), int(last or first)),)
            found.append(Slice("", ip_address(address), ranges, (Protocol(protocol),)))
    for blocks in (*blocks_of(4), *blocks_of(6)):
        for key in elements.get(blocks.owned, {}):
            first, address = key.split(" . ")
            ranges = (PortRange(int(first), int(first) + blocks.size - 1),)
            found.append(Slice("", ip_address(address), ranges, (Protocol.TCP, Protocol.UDP)))
    return found


def stray_protocols(slices: Sequence[Slice]) -> set[int]:
    """Return the protocols, by number, of flows that leave a soft-unicast address of the slices outside of these.

    Raises NetlinkError, PermissionNeeded.
    """
    from nat_rewriter.kernel.conntrack_dumps import EVERYTHING, dump_bytes
    from nat_rewriter.kernel.conntrack_requests import FlowFilter, TupleFilter

    # Where a flow's own packets come from once they have been rewritten: where its answers go.
    addresses = {owned.address for owned in slices}
    wanted = [FlowFilter(reply=TupleFilter(dst=each)) for each in addresses]
    found = b"".join(map(dump_bytes, wanted if len(wanted) <= _MOST_ADDRESSES else (EVERYTHING,)))
    return _strays(found, slices) if found else set()


def _strays(found: bytes, slices: Sequence[Slice]) -> set[int]:
    import numpy as np

    from nat_rewriter.detect.ownership import NOBODY, SliceIndex
    from nat_rewriter.kernel.conntrack_records import FLOW_DTYPE

    flows, index = np.frombuffer(found, FLOW_DTYPE), SliceIndex(slices)
    soft = index.find_addresses(flows["reply_dst"], flows["family"])
    flows, soft = flows[soft != NOBODY], soft[soft != NOBODY]
    outside = index.owners(soft, flows["protocol"], flows["reply_dport"]) == NOBODY
    return set(flows["protocol"][outside].tolist())
