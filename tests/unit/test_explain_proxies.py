"""What `natctl explain` says of proxies: which one takes a client's packet in, and which ones connect from a tuple."""

from __future__ import annotations

from dataclasses import replace

import pytest
from explaining import CONFIG, TCP, flow_tuple, nat_flow, packet

from nat_rewriter.config import read_policy
from nat_rewriter.explain import Explanation, Packet, Situation, explain, subject_of
from nat_rewriter.explain.hooks import chains_of
from nat_rewriter.explain.lines import explanation_lines
from nat_rewriter.explain.objects import explanation_object
from nat_rewriter.explain.passage import Fate
from nat_rewriter.explain.stations import CHAINS
from nat_rewriter.model.policy import Policy

PROXIES = """
[[proxy]]
name = "web"
mode = "redirect"
listen = "0.0.0.0:3129"
slices = ["ams-1"]
iifname = "fish0"
destination = ["203.0.113.0/24"]
ports = ["80", "443"]
[[proxy]]
name = "mail"
mode = "tproxy"
listen = "127.0.0.1:3130"
slices = ["tcp-only"]
source = ["10.0.0.0/24"]
ports = ["25"]
[[proxy]]
name = "applications"
mode = "socks"
listen = "127.0.0.1:1080"
slices = ["ams-1"]
"""


@pytest.fixture(scope="module")
def policy() -> Policy:
    return read_policy((CONFIG + PROXIES).encode(), "test")


def explained(policy: Policy, given: Packet, situation: Situation | None = None) -> Explanation:
    return explain(policy, subject_of(given, policy), situation or Situation(flows=(), sockets=()))


def text_of(one: Explanation) -> str:
    return "\n".join("".join(text for text, _ in line) for line in explanation_lines(one))


def test_every_chain_of_proxies_has_an_account(policy: Policy) -> None:
    assert {"proxy_redirect", "proxy_tproxy"} <= {chain.name for chain in chains_of(policy)} <= set(CHAINS)


def test_a_packet_that_a_proxy_takes_in_is_not_rewritten(policy: Policy) -> None:
    one = explained(policy, packet())
    outcome = one.configured.forwarded
    assert outcome.fate is Fate.PROXIED
    assert outcome.text == (
        "[[proxy]] web takes it in and connects on from slice ams-1, as a local socket; "
        "while natctl proxy does not run it is refused"
    )
    assert [step.station for step in outcome.steps][-1] == "proxy_redirect"
    assert "[[proxy]] web takes it in at 0.0.0.0:3129" in text_of(one)
    assert explanation_object(one)["proxies"] == [{"proxy": "web", "does": "takes-in", "listen": "0.0.0.0:3129"}]


@pytest.mark.parametrize(
    "given",
    [
        packet(iifname="fish1"),
        packet(dst="192.0.2.1"),
        packet("udp"),
        Packet(flow_tuple("tcp", "10.0.0.2", 40000, "203.0.113.1", 8080), "fish0", "eth0"),
    ],
)
def test_near_misses_are_not_taken_in(policy: Policy, given: Packet) -> None:
    one = explained(policy, given)
    assert one.configured.forwarded.fate is not Fate.PROXIED
    assert "proxies" not in explanation_object(one)


def test_tproxy_comes_before_rewriting_of_any_kind(policy: Policy) -> None:
    one = explained(policy, Packet(flow_tuple("tcp", "10.0.0.2", 40000, "203.0.113.1", 25), "fish0", "eth0"))
    assert one.configured.forwarded.fate is Fate.PROXIED
    assert one.configured.forwarded.steps[-1].station == "proxy_tproxy"


def test_an_unknown_interface_is_told_and_not_guessed(policy: Policy) -> None:
    one = explained(policy, packet(iifname=None))
    assert one.configured.forwarded.fate is not Fate.PROXIED
    assert "where it came in by fish0" in text_of(one)


def test_what_has_an_entry_or_is_for_this_host_is_not_taken_in(policy: Policy) -> None:
    held = nat_flow(1, 9003)
    going_on = explained(policy, replace(packet(), tuple=held.original), Situation(flows=(held,), sockets=()))
    assert going_on.configured.forwarded.fate is Fate.CONTINUES
    local = explained(policy, packet(), Situation(flows=(), sockets=(), destination_local=True))
    assert local.configured.forwarded.fate is Fate.DELIVERED


def test_a_tuple_on_the_wire_names_the_proxies_that_may_connect_from_it(policy: Policy) -> None:
    one = explained(policy, Packet(TCP, None, "eth0"))
    assert [proxy.name for proxy in one.connecting] == ["web", "applications"]
    assert "[[proxy]] applications may connect from it" in text_of(one)
    # Clients' packets to there come to rewriting only where the proxy does not take them in.
    assert one.configured.forwarded.fate is Fate.MAY_TAKE
    assert any("[[proxy]] web takes it in where" in step.does for step in one.configured.forwarded.steps)
