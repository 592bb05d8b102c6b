"""Rules as they match, and ports as they are given."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from explaining import CONFIG, ECHO, SOFT, TCP, flow_tuple, local_flow, nat_flow, packet

from nat_rewriter.config import read_policy
from nat_rewriter.explain import Packet, Situation
from nat_rewriter.explain.matching import Match, chosen_target, list_targets, try_rules
from nat_rewriter.explain.ports import Choice, choose_port, null_binding_range
from nat_rewriter.model.flows import Flow, Origin, Status
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.slices import PortRange
from nat_rewriter.model.tuples import FlowTuple


@pytest.fixture(scope="module")
def policy() -> Policy:
    return read_policy(CONFIG.encode(), "test")


def tried(policy: Policy, one: Packet, origin: Origin = Origin.FORWARDED) -> list[tuple[str, str]]:
    return [(trial.rule.name, trial.match.value) for trial in try_rules(policy.snat, one, origin)]


def test_the_first_rule_that_matches_wins(policy: Policy) -> None:
    found = tried(policy, packet())
    assert found == [("marked", "differs"), ("web", "takes"), ("all", "not-reached"), ("six", "not-reached")]


@pytest.mark.parametrize(
    ("one", "rule", "match", "reason"),
    [
        (packet(mark=17), "marked", Match.DIFFERS, "mark is 0x11, not 0x10"),
        (packet(mark=16), "marked", Match.TAKES, "matches"),
        (packet(iifname="eth7"), "web", Match.DIFFERS, "iifname is eth7, not fish0 or fish1"),
        (packet(iifname=None), "web", Match.UNCERTAIN, "only where iifname is fish0 or fish1 (--iif says which it is)"),
        (packet(dst="192.0.2.1"), "web", Match.DIFFERS, "destination 192.0.2.1 is not in 203.0.113.0/24"),
        (packet(dst="203.0.113.9"), "web", Match.EXCLUDES, "destination 203.0.113.9 is excluded"),
        (packet("udp", dst="203.0.113.9"), "web", Match.EXCLUDES, "destination 203.0.113.9 is excluded"),
        (packet(src="10.0.0.9"), "web", Match.EXCLUDES, "source 10.0.0.9 is excluded"),
        (packet("udp"), "web", Match.DIFFERS, "has no slice of IPv4 for udp"),
        (packet(src="2001:db8:1::1", dst="2001:db8::2"), "web", Match.DIFFERS, "has no slice of IPv6"),
        (
            packet(src="10.9.0.1", dst="192.0.2.1"), "all", Match.DIFFERS,
            "source 10.9.0.1 is not in 10.0.0.0/24, 10.1.0.0/24, 10.3.0.0/24 or 1 more",
        ),
        (packet(src="2001:db8:1::1", dst="2001:db8::2", oifname=None), "six", Match.UNCERTAIN, "--oif"),
    ],
)  # fmt: skip
def test_a_rule_says_why(policy: Policy, one: Packet, rule: str, match: Match, reason: str) -> None:
    found = {trial.rule.name: trial for trial in try_rules(policy.snat, one, Origin.FORWARDED)}[rule]
    assert found.match is match
    assert reason in found.reason


def test_a_packet_of_this_host_has_come_in_by_no_interface(policy: Policy) -> None:
    assert dict(tried(policy, packet(), Origin.LOCAL))["web"] == "differs"
    assert dict(tried(policy, packet(iifname=None), Origin.LOCAL))["web"] == "differs"


def test_ranges_share_flows_by_their_size(policy: Policy) -> None:
    (rule,) = [rule for rule in policy.snat if rule.name == "all"]
    targets = list_targets(rule, packet())
    assert [(str(one.ports), one.share) for one in targets] == [
        ("9000-9009", Fraction(1, 3)), ("9100-9119", Fraction(2, 3)),
    ]  # fmt: skip
    assert chosen_target(rule, packet()) in [replace(one, share=Fraction(1)) for one in targets]


RANGE = PortRange(9000, 9002)


@pytest.mark.parametrize(
    ("sport", "held", "choice", "port", "free", "ending"),
    [
        (40000, [], Choice.MOVED, None, 3, 0),
        (9001, [], Choice.KEPT, 9001, 3, 0),
        (9001, [nat_flow(1, 9001)], Choice.MOVED, None, 2, 0),
        (40000, [nat_flow(1, 9000), nat_flow(2, 9002)], Choice.MOVED, 9001, 1, 0),
        (40000, [nat_flow(1, 9000), nat_flow(2, 9002, "TIME_WAIT")], Choice.MOVED, None, 1, 1),
        (40000, [nat_flow(n, 9000 + n) for n in range(3)], Choice.NONE, None, 0, 0),
        (40000, [nat_flow(n, 9000 + n, "CLOSE") for n in range(3)], Choice.MOVED, None, 0, 3),
        (40000, [nat_flow(n, 9000 + n, dport=80) for n in range(3)], Choice.MOVED, None, 3, 0),
        (40000, [local_flow(9000), local_flow(9001, 9002)], Choice.MOVED, 9001, 1, 0),
    ],
)
def test_ports_are_kept_moved_or_missing(
    sport: int, held: list[Flow], choice: Choice, port: int | None, free: int, ending: int
) -> None:
    wanted = flow_tuple("tcp", "10.0.0.2", sport, "203.0.113.1", 443)
    found = choose_port(wanted, SOFT, RANGE, Situation(flows=held))
    assert (found.choice, found.port, found.free, found.ending) == (choice, port, free, ending)


def test_a_source_port_keeps_what_it_has_towards_others() -> None:
    wanted = flow_tuple("udp", "10.0.0.7", 5000, "203.0.113.1", 53)
    there = nat_flow(1, 9002, dport=54, sport=5000, protocol="udp")
    found = choose_port(wanted, SOFT, RANGE, Situation(flows=[there]))
    assert (found.choice, found.port) == (Choice.REUSED, 9002)
    taken = [there, nat_flow(2, 9002, dport=53, protocol="udp")]
    assert choose_port(wanted, SOFT, RANGE, Situation(flows=taken)).choice is Choice.MOVED


def test_echo_ids_are_taken_whatever_the_other_number() -> None:
    held = Flow(
        flow_tuple("icmp", "10.0.0.7", 5, "203.0.113.1", 5), flow_tuple("icmp", "203.0.113.1", 9000, str(SOFT), 9000),
        Status.SRC_NAT, 1,
    )  # fmt: skip
    wanted = flow_tuple("icmp", "10.0.0.2", 7, "203.0.113.1", 7)
    assert choose_port(wanted, SOFT, RANGE, Situation(flows=[held])).free == 2


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (replace(TCP, sport=80), PortRange(1, 511)), (replace(TCP, sport=600), PortRange(600, 1023)),
        (TCP, PortRange(1024, 65535)), (ECHO, PortRange(0, 65535)),
    ],
)  # fmt: skip
def test_without_a_rule_the_kernel_moves_a_port_far(one: FlowTuple, expected: PortRange) -> None:
    assert null_binding_range(one) == expected
