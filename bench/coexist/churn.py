"""Local sockets and NAT flows that come and go in one slice at the same time, to the same servers."""

from __future__ import annotations

from dataclasses import dataclass

from bench.coexist.load import Outcome, connects
from nat_rewriter.model.slices import PortRange
from netns_lab import Lab
from netns_lab.topology import CLIENT, CLIENT_6, SERVER, SERVER_6, SOFT_ADDRESS, SOFT_ADDRESS_6

ADDRESSES = {4: (CLIENT, SERVER, SOFT_ADDRESS), 6: (CLIENT_6, SERVER_6, SOFT_ADDRESS_6)}
SERVERS = 8
HOLD_S = 0.2
PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Churn:
    """How both sides fared, each once with connections that it closes first, and once that the server does."""

    flows: tuple[Outcome, ...]
    sockets: tuple[Outcome, ...]
    leaked: int

    def total(self, name: str) -> int:
        """Return the sum of one figure over all connections."""
        return sum(int(getattr(outcome, name)) for outcome in (*self.flows, *self.sockets))


def churn(lab: Lab, ports: PortRange, *, each: int, seconds: float, family: int = 4) -> Churn:
    """Make ``each`` NAT flows and as many connections of local sockets from the ports, evenly over the time.

    The lab has its server running, and natctl applied.
    """
    client, server, soft = ADDRESSES[family]
    shape = {
        "count": each // 2, "rate": each / 2 / seconds, "at_once": 4096, "hold": HOLD_S, "patience": PATIENCE_S,
        "destinations": SERVERS,
    }  # fmt: skip
    local = {"ports": str(ports), "retries": 1000, "ask_conntrack": True}
    both = (False, True)
    flows = [connects(lab.client, client, server, sources=lab.clients, server_closes=it, **shape) for it in both]
    sockets = [connects(lab.egress, soft, server, server_closes=it, **shape, **local) for it in both]
    return Churn(
        tuple(running.outcome() for running in flows),
        tuple(running.outcome() for running in sockets),
        lab.leaks().total,
    )
