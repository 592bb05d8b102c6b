"""How an operator ends a flow by hand."""

from __future__ import annotations

from nat_rewriter.model.tuples import FlowTuple


def deletion(original: FlowTuple) -> str:
    """Return the ``conntrack`` command that deletes the entry of a flow, given its original tuple."""
    ends = f"conntrack -D -p {original.protocol} -s {original.src} -d {original.dst}"
    if original.has_echo_id:
        return f"{ends} --icmp-id {original.sport}"
    return f"{ends} --sport {original.sport} --dport {original.dport}"
