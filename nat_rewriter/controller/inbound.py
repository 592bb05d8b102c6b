"""Keeps the rules current by which packets for shared addresses get to the host that owns the port."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from nat_rewriter.errors import NatctlError
from nat_rewriter.kernel.inbound import Handover, own_peer
from nat_rewriter.model.generations import Configuration
from nat_rewriter.model.inbound import Holders, Inbound
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.pools import Block, Deed
from nat_rewriter.model.slices import Address
from nat_rewriter.pool import PoolStore, open_store
from nat_rewriter.pool.hosts import HoldersWatch

_WAIT_S = 0.5
_RETRY_S = 1.0
_ANNOUNCEMENTS_IN_A_TERM = 5


class InboundKeeper:
    """Tells the others where this host is, and follows who holds what, in a thread with a store of its own.

    What the kernel has stays when the keeper ends or the store is silent: most of it is still right. Does nothing where
    the policy has no ``[inbound]``, but take away what was there of another. Raises NatctlError for a device or an
    address that is none of this host's.
    """

    def __init__(self, policy: Policy, host: str, tell: Callable[[Deed], None]) -> None:
        self._pools, self._inbound, self._host, self._tell = tuple(policy.pools), policy.inbound, host, tell
        if policy.inbound:
            own_peer(host, policy.inbound)
        self._address = policy.store
        self._ttl_s = min(pool.ttl_s for pool in self._pools)
        self._handover = Handover(policy.controller.table, host)
        self._seen: Holders | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Begin to follow the store; rules of an agent before stay until it has answered."""
        if self._inbound is None:
            self._handover.take_down()
            self._handover.close()
            return
        self._thread = threading.Thread(target=self._run, args=(self._inbound,), name="natctl-inbound", daemon=True)
        self._thread.start()

    def refuse_other(self, configuration: Configuration) -> None:
        """Raise NatctlError where a configuration has another ``[inbound]``."""
        if configuration.policy.inbound != self._inbound:
            raise NatctlError("reload", "another [inbound] needs a restart of the agent", configuration.source)

    def close(self) -> None:
        """Follow no more; the rules stay."""
        self._end()
        self._handover.close()

    def leave(self) -> None:
        """Tell the others that this host is gone, and take the rules away."""
        self._end()
        if self._inbound:
            with open_store(self._address) as store:
                store.hosts.depart(self._host)
            self._handover.take_down()

    def _end(self) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join()

    def _run(self, inbound: Inbound) -> None:
        failure = ""
        while not self._ended.is_set():
            try:
                with open_store(self._address) as store, store.hosts.watch() as watch:
                    self._follow(inbound, store, watch)
            except NatctlError as error:
                if str(error) != failure:
                    self._told("failed", str(error))
                failure = str(error)
                self._ended.wait(_RETRY_S)

    def _follow(self, inbound: Inbound, store: PoolStore, watch: HoldersWatch) -> None:
        """Keep the rules to what the store says. Others are told of this host once it has rules."""
        due = 0.0
        while not self._ended.is_set():
            if (holders := watch.wait(_WAIT_S)) is not None:
                self._take_up(inbound, holders)
            if time.monotonic() >= due:
                self._mend(inbound)
                store.hosts.announce(own_peer(self._host, inbound), self._ttl_s)
                due = time.monotonic() + self._ttl_s / _ANNOUNCEMENTS_IN_A_TERM

    def _take_up(self, inbound: Inbound, holders: Holders) -> None:
        before, self._seen = self._seen, holders
        if before is None:
            self._handover.raise_up(self._pools, inbound, holders)
        else:
            self._handover.update(holders, self._given(before, holders), self._ttl_s)
        if before is None or before.peers.keys() != holders.peers.keys():
            self._told("inbound", f"hands over to {len(holders.peers.keys() - {self._host})} hosts")

    def _mend(self, inbound: Inbound) -> None:
        """Put everything in place again where somebody has emptied the kernel's tables, or made a device anew."""
        if self._seen is not None and not self._handover.stands():
            self._handover.raise_up(self._pools, inbound, self._seen)

    def _given(self, before: Holders, after: Holders) -> dict[Block, Address]:
        """Return the blocks that this host had and another has now, and where that is."""
        lost = before.held.get(self._host, frozenset()) - after.held.get(self._host, frozenset())
        takers = [peer for host, peer in after.peers.items() if lost and host != self._host]
        places = {
            block: peer.address(block.address.version)
            for peer in takers
            for block in lost & after.held.get(peer.host, frozenset())
        }
        return {block: address for block, address in places.items() if address}

    def _told(self, what: str, detail: str) -> None:
        self._tell(Deed(datetime.now(UTC), what, detail=detail))
