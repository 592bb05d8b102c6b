"""``[inbound]``: packets for shared addresses that are handed over to the host of the fleet that owns the port."""

from __future__ import annotations

from collections.abc import Iterable

from nat_rewriter.config import values
from nat_rewriter.config.section import Section
from nat_rewriter.model.inbound import Inbound
from nat_rewriter.model.pools import Pool


def read_inbound(root: Section, pools: Iterable[Pool]) -> Inbound | None:
    """Return what ``[inbound]`` says; None where it is absent or faulty."""
    section = root.table("inbound")
    if section is None or not root.has("inbound"):
        return None
    device = section.required("device", values.interface)
    addresses = section.distinct("addresses", values.host_address, single=True)
    arrival = tuple(section.distinct("arrival", values.interface, single=True).values())
    section.refuse_unknown()
    if not section.has("addresses"):
        section.refuse("addresses", 'where other hosts reach this one, of each IP version one, e.g. ["192.0.2.11"]')
    seen: set[int] = set()
    for index, address in addresses.items():
        if address.version in seen:
            section.refuse("addresses", "one address of each IP version", index)
        seen.add(address.version)
    _refuse_missing_families(section, pools, seen)
    if device is None or not section.clean:
        return None
    return Inbound(device, tuple(addresses.values()), arrival or (device,))


def _refuse_missing_families(section: Section, pools: Iterable[Pool], seen: set[int]) -> None:
    shared = {address.version for pool in pools for address in pool.addresses}
    if not shared:
        section.refuse("device", "a [[pool]] beside [inbound]")
    if section.clean:
        for missing in sorted(shared - seen):
            section.refuse("addresses", f"an IPv{missing} address too: there are pools of that version")
