"""Which process local flows are of."""

from __future__ import annotations

import numpy as np

from nat_rewriter.detect.keys import first_match, mix, socket_keys, tuple_keys
from nat_rewriter.history.records import Column, Records, Trait
from nat_rewriter.kernel.sockets import find_owners, list_sockets
from nat_rewriter.model.sockets import Owner


class OwnerNames:
    """Names the processes of local flows, in the network namespace of the calling thread.

    A flow whose socket is gone by then stays without. Processes that were found are remembered as long as their
    sockets are there, for searching /proc costs more than listing all sockets.
    """

    def __init__(self) -> None:
        self._owners: dict[int, Owner] = {}

    def __call__(self, records: Records) -> None:
        """Write process id and command into records of local flows."""
        rows = np.flatnonzero(records["traits"] & Trait.LOCAL)
        sockets = list_sockets()
        inodes = _inodes(records[rows], sockets)
        self._find(set(inodes.tolist()) - {0}, set(sockets["inode"].tolist()))
        for row, inode in zip(rows, inodes.tolist(), strict=True):
            if owner := self._owners.get(inode):
                records["pid"][row], records["command"][row] = owner.pid, owner.command.encode()[:16]

    def _find(self, wanted: set[int], existing: set[int]) -> None:
        self._owners = {inode: owner for inode, owner in self._owners.items() if inode in existing}
        self._owners |= find_owners(wanted - self._owners.keys())


def _inodes(records: Records, sockets: Column) -> Column:
    """Return the inode of each flow's socket, 0 for none: the connected one, else one that is bound to its port."""
    tuples = tuple_keys(
        records["protocol"], records["client"], records["client_port"], records["remote"], records["remote_port"]
    )
    inodes = np.append(sockets["inode"], 0)  # row -1: none
    bound = mix(sockets["protocol"], sockets["sport"], sockets["src"][:, 0], sockets["src"][:, 1])
    high, low = records["client"].T
    found = inodes[first_match(tuples, socket_keys(sockets))]
    for address in ((high, low), (np.zeros_like(high), np.zeros_like(low))):
        on_port = first_match(mix(records["protocol"], records["client_port"], *address), bound)
        found = np.where(found == 0, inodes[on_port], found)
    return found
