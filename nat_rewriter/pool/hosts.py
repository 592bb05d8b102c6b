"""Where the hosts of a fleet are, and who holds what: for those that hand packets over to each other."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from ipaddress import ip_address
from types import TracebackType
from typing import Self

from nat_rewriter.errors import StateError
from nat_rewriter.model.inbound import Holders, Peer


class HoldersWatch(ABC):
    """Follows who holds what, and where the hosts are."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """End it."""

    @abstractmethod
    def wait(self, timeout_s: float) -> Holders | None:
        """Return who holds what, the first time at once and then when it has changed; None where it has not in time.

        Raises StateError where the store cannot be asked; who asks again begins anew.
        """


class Hosts(ABC):
    """The hosts that told where they are, each until its time ends. All raise StateError as PoolStore does."""

    @abstractmethod
    def announce(self, peer: Peer, ttl_s: int) -> None:
        """Tell where a host is, for so many seconds from now on."""

    @abstractmethod
    def depart(self, host: str) -> None:
        """Forget where a host is."""

    @abstractmethod
    def holders(self) -> Holders:
        """Return who holds what of all pools, and where the hosts are."""

    @abstractmethod
    def watch(self) -> HoldersWatch:
        """Begin to follow that."""


def peer_text(peer: Peer) -> str:
    """Return where a host is as it is stored."""
    return json.dumps({"addresses": [str(address) for address in peer.addresses], "link": peer.link})


def peer_from(host: str, text: str | bytes) -> Peer:
    """Return where a host is by what is stored. Raises StateError for what natctl did not write."""
    try:
        told = json.loads(text)
        return Peer(host, tuple(map(ip_address, told["addresses"])), str(told["link"]))
    except (ValueError, KeyError, TypeError) as error:
        raise StateError("read hosts", "a host's addresses that are not natctl's", str(text)[:80]) from error
