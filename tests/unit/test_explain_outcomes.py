"""Rules as they match, ports as they are given, and what would happen, without a kernel."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from ipaddress import ip_address
from typing import Any

import pytest

from nat_rewriter.config import read_policy
from nat_rewriter.explain import Explanation, Packet, SeenSocket, Situation, explain, subject_of
from nat_rewriter.explain.hooks import BaseChain, base_chains, chains_at, chains_of
from nat_rewriter.explain.lines import explanation_lines
from nat_rewriter.explain.matching import Match, chosen_target, list_targets, try_rules
from nat_rewriter.explain.modes import in_mode
from nat_rewriter.explain.objects import explanation_object
from nat_rewriter.explain.passage import Fate
from nat_rewriter.explain.ports import Choice, choose_port, null_binding_range
from nat_rewriter.explain.situation import Claim, Table
from nat_rewriter.explain.stations import CHAINS
from nat_rewriter.model.flows import Flow, Origin, Status
from nat_rewriter.model.policy import Coexist, Policy
from nat_rewriter.model.slices import PortRange
from nat_rewriter.model.tuples import FlowTuple


def flow_tuple(protocol: str, src: str, sport: int, dst: str, dport: int) -> FlowTuple:
    return FlowTuple(protocol, ip_address(src), sport, ip_address(dst), dport)


TCP = flow_tuple("tcp", "198.51.100.10", 9000, "203.0.113.1", 443)
UDP6 = flow_tuple("udp", "2001:db8::1", 9000, "2001:db8::2", 53)
ECHO = flow_tuple("icmp", "198.51.100.10", 77, "203.0.113.1", 77)
ECHO6 = flow_tuple("icmpv6", "2001:db8::1", 77, "2001:db8::2", 77)


# --- rules

CONFIG = """
version = 1
[controller]
coexist = "confine"
[[slice]]
name = "ams-1"
address = "198.51.100.10"
ports = ["9000-9009", "9100-9119"]
protocols = ["tcp", "udp", "icmp"]
[[slice]]
name = "ams-6"
address = "2001:db8::10"
ports = ["9000-9009"]
[[slice]]
name = "tcp-only"
address = "198.51.100.11"
ports = ["80"]
protocols = ["tcp"]
[[snat]]
name = "marked"
mark = 16
slices = ["ams-1"]
[[snat]]
name = "web"
iifname = ["fish0", "fish1"]
destination = ["203.0.113.0/24"]
exclude = ["203.0.113.9"]
exclude_source = ["10.0.0.9"]
slices = ["tcp-only"]
[[snat]]
name = "all"
source = ["10.0.0.0/24", "10.1.0.0/24", "10.3.0.0/24", "10.5.0.0/24"]
slices = ["ams-1"]
[[snat]]
name = "six"
oifname = "eth0"
slices = ["ams-6"]
[[dnat]]
name = "inbound"
slice = "ams-1"
ports = ["9000-9004"]
to = "10.0.0.2:80"
"""


@pytest.fixture(scope="module")
def policy() -> Policy:
    return read_policy(CONFIG.encode(), "test")


def packet(protocol: str = "tcp", src: str = "10.0.0.2", dst: str = "203.0.113.1", **options: Any) -> Packet:
    return Packet(flow_tuple(protocol, src, 40000, dst, 443), **({"iifname": "fish0", "oifname": "eth0"} | options))


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


# --- ports

RANGE = PortRange(9000, 9002)
SOFT = ip_address("198.51.100.10")


def nat_flow(
    number: int,
    port: int,
    state: str = "ESTABLISHED",
    *,
    dport: int = 443,
    sport: int | None = None,
    protocol: str = "tcp",
) -> Flow:
    original = flow_tuple(protocol, "10.0.0.7", sport or 30000 + number, "203.0.113.1", dport)
    reply = flow_tuple(protocol, "203.0.113.1", dport, "198.51.100.10", port)
    return Flow(original, reply, Status.CONFIRMED | Status.SRC_NAT, number, state=state)


def local_flow(port: int, wire: int | None = None) -> Flow:
    original = replace(TCP, sport=port)
    status = Status.CONFIRMED | (Status.SRC_NAT if wire else Status(0))
    return Flow(original, replace(original, sport=wire or port).reversed(), status, 99, state="ESTABLISHED")


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


# --- hooks


@pytest.mark.parametrize("coexist", list(Coexist))
def test_every_chain_of_the_rendered_table_has_an_account(policy: Policy, coexist: Coexist) -> None:
    everything = replace(in_mode(policy, coexist), controller=replace(policy.controller, coexist=coexist))
    chains = chains_of(everything)
    assert {chain.name for chain in chains} <= set(CHAINS)
    assert {"srcnat", "dstnat", "guard"} <= {chain.name for chain in chains}


def test_nat_happens_where_the_kernel_does_it_whatever_the_priority_of_its_chain() -> None:
    text = "\tchain early {\n\t\ttype nat hook postrouting priority 50; policy accept;\n\t}\n"
    text += "\tchain between {\n\t\ttype filter hook postrouting priority 60; policy accept;\n\t}\n"
    chains = base_chains(text)
    assert chains[0] == BaseChain("early", "nat", "postrouting", 50)
    assert [chain.name for chain in chains_at(chains, "postrouting")] == ["between", "early"]


# --- what would happen


def explained(policy: Policy, one: FlowTuple, situation: Situation | None = None, **options: Any) -> Explanation:
    given = Packet(one, **({"iifname": None, "oifname": "eth0"} | options))
    return explain(policy, subject_of(given, policy), situation or Situation(flows=(), sockets=()))


def fates(one: Explanation, of: str = "socket") -> dict[str, str]:
    return {mode.coexist.value: getattr(mode, of).fate.value for mode in one.modes}


def single(policy: Policy) -> Policy:
    """Return the policy with one range a slice, where confine moves a port within it."""
    return read_policy(CONFIG.replace('"9000-9009", "9100-9119"', '"9000-9009"').encode(), "test")


HELD = Situation(flows=(nat_flow(1, 9000),), sockets=())


def test_a_held_tuple_in_each_mode(policy: Policy) -> None:
    one = explained(single(policy), TCP, HELD)
    assert fates(one) == {"off": "dropped", "confine": "moved", "refuse": "refused", "split": "refused"}
    assert set(fates(one, "forwarded").values()) == {"avoids"}
    assert one.configured.socket.ports == (PortRange(9000, 9009),)
    assert one.flow_type(one.flows[0]) == "nat-flow"


@pytest.mark.parametrize(("guard", "fate"), [("drop", "dropped"), ("count", "leaked"), ("off", "leaked")])
def test_what_the_guard_does_about_a_leak(guard: str, fate: str) -> None:
    text = CONFIG.replace('coexist = "confine"', f'coexist = "off"\nguard = "{guard}"')
    assert explained(read_policy(text.encode(), "test"), TCP, HELD).configured.socket.fate.value == fate


def test_a_free_tuple_in_each_mode(policy: Policy) -> None:
    one = explained(policy, TCP)
    assert fates(one) == {"off": "kept", "confine": "kept", "refuse": "kept", "split": "refused"}
    assert set(fates(one, "forwarded").values()) == {"may-take"}
    assert [(rule.name, str(target.ports)) for rule, target in one.rewriters] == [
        ("marked", "9000-9009"), ("all", "9000-9009"),
    ]  # fmt: skip


def test_several_ranges_let_a_port_spill(policy: Policy) -> None:
    one = explained(policy, TCP, HELD).configured.socket
    assert (one.fate, one.ports) == (Fate.MOVED, (PortRange(9000, 9009), PortRange(9100, 9119)))


def test_the_live_claims_decide_in_the_mode_in_force(policy: Policy) -> None:
    refusing = in_mode(single(policy), Coexist.REFUSE)
    without = replace(HELD, claims_known=True)
    # Held, and no claim: confine stands behind refuse.
    assert explained(refusing, TCP, without).configured.socket.fate is Fate.MOVED
    claimed = Situation(flows=(), sockets=(), claim=Claim(120, 7), claims_known=True)
    assert explained(refusing, TCP, claimed).configured.socket.fate is Fate.REFUSED


def test_a_socket_goes_on_with_the_entry_it_has(policy: Policy) -> None:
    one = explained(policy, TCP, Situation(flows=(local_flow(9000),), sockets=()))
    assert set(fates(one).values()) == {"continues"}
    assert one.flow_type(one.flows[0]) == "local-flow"
    moved = explained(policy, TCP, Situation(flows=(local_flow(9000, 9005),), sockets=()))
    assert moved.wire == replace(TCP, sport=9005)
    leaked = explained(policy, TCP, Situation(flows=(local_flow(9000, 50000),), sockets=()))
    assert set(fates(leaked).values()) == {"dropped"}


def test_an_idle_socket_does_not_protect_its_tuple(policy: Policy) -> None:
    idle = SeenSocket("ESTABLISHED", "tcp", TCP.src, 9000, TCP.dst, 443, 1, 0)
    one = explained(policy, TCP, Situation(flows=(), sockets=(idle,)))
    assert set(fates(one, "forwarded").values()) == {"takes-anyway"}
    assert one.sockets == (idle,)


def test_a_port_outside_the_slices_never_leaves(policy: Policy) -> None:
    one = explained(policy, replace(TCP, sport=8000))
    assert one.owner is None
    assert set(fates(one).values()) == {"dropped"}
    assert set(fates(one, "forwarded").values()) == {"never"}


def test_ports_kept_for_sockets_are_out_of_reach_of_rules() -> None:
    text = CONFIG.replace('coexist = "confine"', 'coexist = "split"').replace(
        'ports = ["9000-9009", "9100-9119"]', 'ports = ["9000-9009", "9100-9119"]\nsocket_ports = ["9005-9009"]'
    )
    split = read_policy(text.encode(), "test")
    one = explained(split, replace(TCP, sport=9007))
    assert (one.configured.socket.fate, one.configured.forwarded.fate) == (Fate.KEPT, Fate.NEVER)
    assert fates(one)["off"] == "kept"
    assert fates(one, "forwarded")["confine"] == "may-take"
    assert explained(split, TCP).configured.socket.fate is Fate.REFUSED


def test_unsolicited_packets(policy: Policy) -> None:
    one = explained(policy, TCP.reversed(), iifname="eth0", oifname=None)
    assert one.subject.turned
    assert one.subject.packet.tuple == TCP
    assert one.subject.packet.oifname == "eth0"
    assert set(fates(one, "inbound").values()) == {"sent-on"}
    elsewhere = explained(policy, replace(TCP, sport=9005))
    assert fates(elsewhere, "inbound") == {
        "off": "delivered", "confine": "delivered", "refuse": "delivered", "split": "refused",
    }  # fmt: skip
    assert elsewhere.dnat is None


def test_a_clients_packet_and_its_rival(policy: Policy) -> None:
    one = explained(policy, packet().tuple, iifname="fish0")
    assert one.deciding is not None
    assert (one.deciding.rule.name, one.target and one.target.slice.name) == ("web", "tcp-only")
    assert set(fates(one, "forwarded").values()) == {"rewritten"}
    # A socket that wants what the flow will have: port 80 of the slice.
    assert one.configured.socket.wanted == flow_tuple("tcp", "198.51.100.11", 80, "203.0.113.1", 443)
    assert fates(one) == {"off": "dropped", "confine": "exhausted", "refuse": "refused", "split": "refused"}


def test_a_client_that_no_rule_takes(policy: Policy) -> None:
    one = explained(policy, packet(src="10.9.0.1", dst="192.0.2.1").tuple, iifname="fish0")
    assert one.deciding is None
    assert set(fates(one, "forwarded").values()) == {"unchanged"}


def test_ranges_by_chance_are_all_told() -> None:
    random = read_policy(CONFIG.replace('name = "all"', 'name = "all"\nspread = "random"').encode(), "test")
    one = explained(random, packet("udp").tuple, iifname="fish0")
    assert one.target is None
    assert one.port is None
    assert one.configured.forwarded.ports == (PortRange(9000, 9009), PortRange(9100, 9119))
    assert "33%" in one.configured.forwarded.text


def test_echo_ids_are_confined_to_the_largest_range(policy: Policy) -> None:
    one = explained(policy, ECHO)
    assert (one.configured.socket.fate, one.configured.socket.ports) == (Fate.MOVED, (PortRange(9100, 9119),))
    assert fates(one)["off"] == "dropped"


def test_what_was_not_asked_is_left_out_and_said(policy: Policy) -> None:
    blind = Situation(unanswered=("conntrack: not permitted: needs CAP_NET_ADMIN",), table=Table.ABSENT)
    one = explained(policy, TCP, blind)
    told = explanation_object(one)
    assert told["holders"] == {}
    assert told["unanswered"] == ["conntrack: not permitted: needs CAP_NET_ADMIN"]
    text = ["".join(span for span, _ in line) for line in explanation_lines(one)]
    assert "Could not be asked: conntrack: not permitted: needs CAP_NET_ADMIN" in text
    assert any("natctl apply" in line for line in text)


def test_the_fields_of_the_object_stay_as_they_are(policy: Policy) -> None:
    wire = explanation_object(explained(policy, TCP, HELD))
    assert list(wire) == [
        "protocol", "tuple", "kind", "oifname", "mark", "slice", "holders", "snat", "dnat", "coexist", "guard", "table",
        "modes", "unanswered",
    ]  # fmt: skip
    assert list(wire["modes"]["off"]) == ["socket", "forwarded", "inbound"]
    assert list(wire["modes"]["off"]["socket"]) == ["outcome", "text", "tuple", "ports", "hooks"]
    assert list(wire["modes"]["off"]["socket"]["hooks"][1]) == ["hook", "priority", "station", "verdict", "does"]
    client = explanation_object(explained(policy, packet("udp").tuple, iifname="fish0"))
    assert list(client["snat"]) == ["rule", "spread", "target", "port", "ranges", "tried"]
    assert list(client["modes"]["off"]) == ["socket", "forwarded"]
