"""Whatever policy a configuration can mean, the kernel takes it and lists it back equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nat_rewriter.config import check_document
from nat_rewriter.controller import intent
from nat_rewriter.kernel.nft import KernelNft
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.transaction import CreateTable, DeleteTable, Transaction
from nat_rewriter.plan import plan
from nat_rewriter.render import render, ruleset_text

Document = dict[str, Any]
Draw = Callable[[st.SearchStrategy[Any]], Any]

ADDRESSES = {4: ("198.51.100.10", "198.51.100.11"), 6: ("2001:db8:100::10", "2001:db8:100::11")}
SOURCES = {
    4: ("10.0.0.0/24", "10.0.0.2", "10.0.1.0/25", "0.0.0.0/0", "10.0.0.128/25", "172.16.0.0/12"),
    6: ("2001:db8:10::/64", "2001:db8:10::2", "::/0", "2001:db8:11::/126", "2001:db8:10::4"),
}
INTERFACES = ("fish0", "eth0", "wg-1", "br.100", "a", "eth0@if2", "!weird~name#$%")


def port_texts(draw: Draw, low: int) -> list[str]:
    """Draw up to three ranges above ``low`` that do not overlap, single ports among them."""
    texts, first = [], low
    for size in draw(st.lists(st.integers(1, 40), min_size=1, max_size=3)):
        first += draw(st.integers(1, 5))
        texts.append(str(first) if size == 1 else f"{first}-{first + size - 1}")
        first += size
    return texts


def slices_of(draw: Draw, split: bool, most: int) -> list[Document]:
    found = []
    for number in range(draw(st.integers(1, most))):
        family = draw(st.sampled_from((4, 6)))
        ports = port_texts(draw, 1000 * (number + 1))
        one: Document = {
            "name": f"s{number}",
            "address": draw(st.sampled_from(ADDRESSES[family])),
            "ports": ports,
            "protocols": draw(st.lists(st.sampled_from(("tcp", "udp", "icmp")), min_size=1, unique=True)),
        }
        if split and len(ports) > 1 and draw(st.booleans()):
            one["socket_ports"] = ports[-1:]
        found.append(one)
    return found


def snat_of(draw: Draw, name: str, slices: list[Document]) -> Document:
    chosen = draw(st.lists(st.sampled_from([one["name"] for one in slices]), min_size=1, unique=True))
    family = 6 if ":" in next(one["address"] for one in slices if one["name"] == chosen[0]) else 4
    networks = st.lists(st.sampled_from(SOURCES[family]), min_size=1, max_size=3)
    matches = {
        "iifname": st.lists(st.sampled_from(INTERFACES), min_size=1, max_size=2, unique=True),
        "oifname": st.sampled_from(INTERFACES),
        "source": networks,
        "destination": networks,
        "mark": st.integers(0, 2**32 - 1),
    }
    given_keys = draw(st.sets(st.sampled_from(sorted(matches)), min_size=1))
    rule: Document = {"name": name, "slices": chosen} | {key: draw(matches[key]) for key in sorted(given_keys)}
    optional = {
        "spread": st.sampled_from(("client", "flow", "random")),
        "exclude": networks,
        "exclude_source": networks,
        "timestamps": st.sampled_from(("keep", "strip")),
    }
    return rule | {key: draw(values) for key, values in optional.items() if draw(st.booleans())}


def dnat_of(draw: Draw, slices: list[Document]) -> list[Document]:
    found = []
    for one in slices:
        if set(one["protocols"]) == {"icmp"} or not draw(st.booleans()):
            continue
        to = ("10.0.0.2", "10.0.0.2:80") if ":" not in one["address"] else ("2001:db8:10::2", "[2001:db8:10::2]:80")
        rule = {"name": f"d-{one['name']}", "slice": one["name"], "to": draw(st.sampled_from(to))}
        found.append(rule | ({"ports": one["ports"][:1]} if draw(st.booleans()) else {}))
    return found


@st.composite
def documents(draw: Draw, most_slices: int = 5, most_rules: int = 6) -> Document:
    """Sound documents, of all the keys that the table depends on."""
    coexist = draw(st.sampled_from(("off", "confine", "refuse", "split")))
    slices = slices_of(draw, coexist == "split", most_slices)
    controller = {"coexist": coexist, "guard": draw(st.sampled_from(("off", "count", "drop")))}
    snat = [snat_of(draw, f"r{number}", slices) for number in range(draw(st.integers(0, most_rules)))]
    rules = {"snat": snat, "dnat": dnat_of(draw, slices)}
    return {"version": 1, "controller": controller, "slice": slices} | {k: v for k, v in rules.items() if v}


def policies() -> st.SearchStrategy[Policy]:
    """Policies as a configuration gives them."""
    return documents().map(lambda document: check_document(document, "generated"))


BOUNDED = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@BOUNDED
@given(policies())
def test_a_policy_loads_and_reads_back_equal(kernel_nft: KernelNft, policy: Policy) -> None:
    wanted = render(policy)
    listing = kernel_nft.listing_of(wanted.table, wanted.skeleton)
    kernel_nft.run(plan(wanted, listing, None))
    assert not plan(wanted, listing, kernel_nft.read(wanted.table))
    # The file that `natctl render` prints means the same.
    kernel_nft.run(Transaction((CreateTable("natctl", ruleset_text(policy)),)))
    assert not plan(wanted, listing, kernel_nft.read(wanted.table))


@BOUNDED
@given(policies(), policies())
def test_any_policy_can_follow_another(kernel_nft: KernelNft, before: Policy, after: Policy) -> None:
    kernel_nft.run(Transaction((DeleteTable("natctl"),)))
    for policy in (before, after):
        intent.apply(policy, kernel_nft, lambda _: {})
    assert not intent.read_change(after, kernel_nft).transaction
