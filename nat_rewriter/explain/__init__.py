"""Explaining a tuple: who holds it, which rule takes it, and what would happen to whoever wants it.

Pure: a policy, a packet and what the kernel said go in; an :class:`Explanation` comes out.
"""

from nat_rewriter.explain.explanation import Explanation, Kind, Subject, explain, subject_of
from nat_rewriter.explain.parsing import parse_tuple
from nat_rewriter.explain.situation import Claim, Packet, SeenSocket, Situation, Table

__all__ = [
    "Claim",
    "Explanation",
    "Kind",
    "Packet",
    "SeenSocket",
    "Situation",
    "Subject",
    "Table",
    "explain",
    "parse_tuple",
    "subject_of",
]
