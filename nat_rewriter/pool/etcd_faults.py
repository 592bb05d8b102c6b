"""Faults of releases of etcd that pools have to do with."""

from __future__ import annotations

import re

_MENDED = {(3, 4): 31, (3, 5): 13}  # patch releases, by minor release; all minor releases after these are without it


def ends_leases_early(version: str) -> bool:
    """Tell whether a release of etcd may end leases that have been kept alive (etcd issue 15247).

    A leader that stood still for longer than a term does so when it wakes. Unknown versions are taken to be new.
    """
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if match is None:
        return False
    minor, patch = (int(match[1]), int(match[2])), int(match[3])
    if minor > max(_MENDED):
        return False
    return minor not in _MENDED or patch < _MENDED[minor]
