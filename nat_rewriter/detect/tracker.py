"""Findings over time: each is told once when it opens and once when it closes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from nat_rewriter.model.findings import Finding, Identity, Kind

Change = tuple[Finding, bool]  # the finding, and whether it opened (else it closed)


class FindingTracker:
    """Remembers which findings are open, and how many of each kind opened."""

    def __init__(self) -> None:
        self.opened: Counter[Kind] = Counter()
        self._open: dict[Identity, Finding] = {}

    @property
    def open(self) -> list[Finding]:
        """The findings that are open now, oldest first."""
        return list(self._open.values())

    def has(self, finding: Finding) -> bool:
        """Tell whether the same finding is open already."""
        return finding.identity in self._open

    def add(self, found: Iterable[Finding]) -> list[Change]:
        """Take in findings that were seen, without closing any other; return those that opened."""
        opened = []
        for finding in found:
            if finding.identity not in self._open:
                self._open[finding.identity] = finding
                self.opened[finding.kind] += 1
                opened.append((finding, True))
        return opened

    def replace(self, found: Iterable[Finding]) -> list[Change]:
        """Take in everything that a whole look found; return what opened and what closed since."""
        seen = list(found)
        identities = {finding.identity for finding in seen}
        gone = [identity for identity in self._open if identity not in identities]
        closed = [(self._open.pop(identity), False) for identity in gone]
        return closed + self.add(seen)
