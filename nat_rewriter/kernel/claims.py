"""One claim of the refuse set, looked up by its tuple: the set may hold a million."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass

from nat_rewriter.errors import NftError, PermissionNeeded
from nat_rewriter.kernel.nft import Worker
from nat_rewriter.model.tuples import FlowTuple
from nat_rewriter.render.spelling import concat

_WITHIN_S = 30.0
_UNIT_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_TIME = re.compile(r"([0-9]+)(ms|d|h|m|s)")


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a table says of a tuple. ``listing``: the table without its elements, None where there is no such table.

    ``has_claims``: it has a set of claims; ``element``: the tuple's, as nft writes it, or None.
    """

    listing: str | None
    has_claims: bool = False
    element: str | None = None

    @property
    def timeout_s(self) -> int | None:
        """The seconds that the claim was given by the last packet."""
        return _seconds_after("timeout", self.element)

    @property
    def expires_s(self) -> int | None:
        """The seconds that the claim has left."""
        return _seconds_after("expires", self.element)


def read_claim(table: str, wanted: FlowTuple) -> Claimed:
    """Return the table without its elements, and the claim to a tuple. Raises NftError, PermissionNeeded."""
    worker = Worker([], _WITHIN_S)
    try:
        listing = _asked(worker, f"list table inet {table}", "list ruleset", stateless=True, terse=True)
        name = f"claims{wanted.src.version}"
        if listing is None or f"\tset {name} {{" not in listing:
            return Claimed(listing)
        key = concat(wanted.protocol, wanted.src, wanted.sport, wanted.dst, wanted.dport)
        # Nothing has a claim that is neither TCP nor UDP, and nft would not take its name of the protocol.
        ported = wanted.protocol in ("tcp", "udp")
        found = _asked(worker, f"get element inet {table} {name} {{ {key} }}", "look up claim") if ported else None
        return Claimed(listing, True, found and _element(found))
    finally:
        worker.close()


def _asked(worker: Worker, text: str, operation: str, **options: bool) -> str | None:
    """Return the output of an nft command, None where what it names is not there."""
    answer = worker.ask(text=text, **options)
    if answer["code"] == 0:
        return str(answer["output"])
    told = str(answer["error"]).strip()
    if "No such file or directory" in told:
        return None
    if "Operation not permitted" in told:
        raise PermissionNeeded(operation, "CAP_NET_ADMIN")
    raise NftError(operation, errno.EINVAL, told.splitlines()[0] if told else "refused without a word")


def _element(output: str) -> str | None:
    match = re.search(r"elements = \{ (.*) \}", output)
    return match[1] if match else None


def _seconds_after(word: str, element: str | None) -> int | None:
    match = re.search(rf"{word} (\S+)", element or "")
    if match is None:
        return None
    return sum(int(number) * _UNIT_MS[unit] for number, unit in _TIME.findall(match[1])) // 1000
