"""The nft table of ``[route]``, of family netdev or inet; no other table is read or changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NamedTuple

from nat_rewriter.errors import NftError
from nat_rewriter.kernel.nft import KernelNft
from nat_rewriter.kernel.nft_listing import elements_of
from nat_rewriter.model.slices import Address, PortRange

TABLE_FAMILIES = ("netdev", "inet")
_TUPLES = ("tuples4", "tuples6")
# As nft lists the rules of route_ingress.nft.j2. A device that is gone is listed by the number it had.
_PORTS = re.compile(r"^\t\tip6? saddr \. meta l4proto \. th sport \{ (.+) \} jump sent([46])$", re.MULTILINE)
_ASKING = re.compile(r"^\t\tip6? daddr .+ jump replies([46])$", re.MULTILINE)
_HANDING = re.compile(r"@tuples([46]) .* fwd ip6? to .* device \"[^\"]+\"$", re.MULTILINE)


class HandedOn(NamedTuple):
    """Ports whose replies to the tunnel get there before the IP layer sees them."""

    address: Address
    protocol: str
    ports: PortRange


@dataclass(frozen=True, slots=True)
class Counts:
    """What the table has counted, in packets, by name and IP version; and the tuples it knows."""

    packets: dict[str, int]
    tuples: dict[str, int]


class RouteNft(KernelNft):
    """nftables of this network namespace, as far as the table of ``[route]`` goes."""

    def find_table(self, name: str) -> tuple[str, str] | None:
        """Return the family of the table and how nft lists it; None where there is none."""
        for family in TABLE_FAMILIES:
            if (listing := self.find_listing(family, name)) is not None:
                return family, listing
        return None

    def load(self, family: str, name: str, text: str) -> None:
        """Replace the table, in one transaction; the tuples that it knows stay known."""
        known = list(self._known_tuples(name, text)) if family == "netdev" else []
        try:
            self._ask("load ruleset", text="\n".join([*_deletion(name), text, *known]))
        except NftError:
            if not known:
                raise
            self._ask("load ruleset", text="\n".join([*_deletion(name), text]))  # more than the set holds now

    def delete(self, name: str) -> None:
        """Take the table away, of whichever family it is; none there is no error."""
        self._ask("delete table", text="\n".join(_deletion(name)))

    def count(self, family: str, name: str) -> Counts:
        """Return what the table has counted."""
        listed = self._listed(family, name)
        packets = {one["counter"]["name"]: int(one["counter"]["packets"]) for one in listed if "counter" in one}
        tuples = {name: len(elements) for name, elements in elements_of(listed).items() if name in _TUPLES}
        return Counts(packets, tuples)

    def _known_tuples(self, name: str, text: str) -> Iterator[str]:
        found = self.find_table(name)
        if found and found[0] == "netdev":
            elements = elements_of(self._listed("netdev", name))
            for which in _TUPLES:
                if f"set {which} " in text and (keys := elements.get(which)):
                    yield f"add element netdev {name} {which} {{ {', '.join(keys)} }}"

    def _listed(self, family: str, name: str) -> list[dict[str, Any]]:
        return self.list_objects(f"list table {family} {name}")


def handed_on(listing: str) -> list[HandedOn]:
    """Return the ports whose replies to the tunnel are handed on, out of the listing of a table of family netdev."""
    handing = set(_HANDING.findall(listing)) & set(_ASKING.findall(listing))
    elements = (found[1].split(", ") for found in _PORTS.finditer(listing) if found[2] in handing)
    return [_handed_on(element) for each in elements for element in each]


def _handed_on(element: str) -> HandedOn:
    address, protocol, ports = element.split(" . ")
    first, _, last = ports.partition("-")
    return HandedOn(ip_address(address), protocol, PortRange(int(first), int(last or first)))


def _deletion(name: str) -> list[str]:
    # Adding it first makes the deletion right whether or not the table is there.
    return [f"{verb} table {family} {name}" for family in TABLE_FAMILIES for verb in ("add", "delete")]
