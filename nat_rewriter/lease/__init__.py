"""Leases: the right to a tuple of a slice until it is given back, and sockets that use it.

::

    from nat_rewriter.config import read_policy
    from nat_rewriter.lease import Lessor

    with Lessor(read_policy(Path("/etc/natctl/natctl.toml"))) as lessor:
        with lessor.acquire("ams-1", ("example.com", 443)) as lease:
            sock = lease.connect()
"""

from nat_rewriter.lease.lease import Lease, State
from nat_rewriter.lease.lessor import TERM_S, Lessor
from nat_rewriter.lease.strategies import AUTO, STRATEGIES, Strategy

__all__ = ["AUTO", "STRATEGIES", "TERM_S", "Lease", "Lessor", "State", "Strategy"]
