"""What tests of apply share: the listing of a host, and its log."""

from __future__ import annotations

import re
import sys
from typing import Any

from netns_lab import Lab

NATCTL = [sys.executable, "-m", "nat_rewriter"]


def listing(lab: Lab) -> str:
    """Return the whole ruleset of the egress host, without counters."""
    return lab.egress.run(["nft", "-s", "list", "ruleset"]).stdout


def unordered(text: str) -> list[str]:
    """Return the words of a listing: nft lists sets, chains and elements in the order they came."""
    return sorted(text.replace(",", "").split())


def lasting(lab: Lab) -> list[str]:
    """Return the words of the ruleset of the egress host, without what an apply says of conntrack before and after."""
    return unordered(re.sub(r"(\tset settled \{\n\t\ttype inet_proto\n)\t\telements = .*\n", r"\1", listing(lab)))


def generations(lab: Lab) -> list[dict[str, Any]]:
    """Return the log of the egress host."""
    return lab.natctl("log", "--json", "--table", "natctl", expect=0).lines()


def outcomes(lab: Lab) -> list[tuple[int, str, str]]:
    """Return number, action and outcome of each generation of the egress host."""
    return [(one["number"], one["action"], one["outcome"]) for one in generations(lab)]
