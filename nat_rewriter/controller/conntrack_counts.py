"""What the kernel counts of conntrack by itself, read when somebody asks for metrics."""

from __future__ import annotations

from nat_rewriter.errors import NatctlError
from nat_rewriter.kernel.conntrack import get_table_size, list_cpu_statistics
from nat_rewriter.model.watching import ConntrackCounts


def read_conntrack_counts() -> ConntrackCounts | None:
    """Return the counters of this network namespace, None where the kernel does not tell: metrics do without then."""
    try:
        return ConntrackCounts(*get_table_size(), tuple(list_cpu_statistics()))
    except NatctlError:
        return None
