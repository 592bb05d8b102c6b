"""Where each flow of a table belongs: its slice, and where its first packet came from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nat_rewriter.detect.observation import Rows
from nat_rewriter.detect.ownership import NOBODY, SliceIndex
from nat_rewriter.model.flows import Origin, Status

_ORIGINS = (None, Origin.LOCAL, Origin.FORWARDED)


@dataclass(frozen=True, slots=True)
class Placement:
    """For each flow the number of its slice (NOBODY: none) and of its origin."""

    index: SliceIndex
    slices: Rows
    origins: Rows

    def slice_of(self, row: int) -> str | None:
        """Return the name of the slice that a flow belongs to."""
        return self.index.slice_name(int(self.slices[row]))

    def origin_of(self, row: int) -> Origin | None:
        """Return where a flow came from, None for a flow that has nothing to do with a soft-unicast address."""
        return _ORIGINS[self.origins[row]]

    def names_of(self, rows: Rows) -> list[str | None]:
        """Return the name of the slice of each of some flows."""
        names = np.array([*(each.name for each in self.index.slices), None], dtype=object)  # the last for NOBODY, -1
        found: list[str | None] = names[self.slices[rows]].tolist()
        return found

    def origins_of(self, rows: Rows) -> list[Origin | None]:
        """Return where each of some flows came from."""
        return [_ORIGINS[number] for number in self.origins[rows].tolist()]

    def with_slice(self, name: str) -> Rows:
        """Tell of each flow whether it belongs to the slice of that name."""
        wanted = [number for number, each in enumerate(self.index.slices) if each.name == name]
        return np.isin(self.slices, wanted)

    def with_origin(self, origin: Origin) -> Rows:
        """Tell of each flow whether it has that origin."""
        same: Rows = self.origins == _ORIGINS.index(origin)
        return same


def place_flows(flows: Rows, index: SliceIndex) -> Placement:
    """Return slice and origin of each flow.

    The slice is the one that owns the original source, else the one that the flow leaves from, else the one that it
    was addressed to. Local: the original source is a soft-unicast address. Forwarded: it is not, and the flow was
    rewritten to leave from a soft-unicast address, or came to one and was rewritten to go on. Others have no origin.
    """
    source = index.find_addresses(flows["orig_src"], flows["family"])
    wire = index.find_addresses(flows["reply_dst"], flows["family"])
    target = index.find_addresses(flows["orig_dst"], flows["family"])
    sent_on = (target != NOBODY) & ((flows["status"] & Status.DST_NAT) != 0)
    forwarded = (source == NOBODY) & ((wire != NOBODY) | sent_on)
    origins = np.where(source != NOBODY, 1, np.where(forwarded, 2, 0))
    ends = ((source, "orig_sport"), (wire, "reply_dport"), (target, "orig_dport"))
    slices = np.full(len(flows), NOBODY, dtype=np.int32)
    for addresses, port in ends:
        owners = index.owners(addresses, flows["protocol"], flows[port])
        slices = np.where(slices == NOBODY, owners, slices)
    return Placement(index, slices, origins)
