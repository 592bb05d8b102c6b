"""The hooks a packet passes, and what would happen in each mode, without a kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from explaining import CONFIG, ECHO, TCP, flow_tuple, local_flow, nat_flow, packet

from nat_rewriter.config import read_policy
from nat_rewriter.explain import Explanation, Packet, SeenSocket, Situation, explain, subject_of
from nat_rewriter.explain.hooks import BaseChain, base_chains, chains_at, chains_of
from nat_rewriter.explain.lines import explanation_lines
from nat_rewriter.explain.modes import in_mode
from nat_rewriter.explain.objects import explanation_object
from nat_rewriter.explain.passage import Fate
from nat_rewriter.explain.situation import Claim, Table
from nat_rewriter.explain.stations import CHAINS
from nat_rewriter.model.flows import Status
from nat_rewriter.model.policy import Coexist, Policy
from nat_rewriter.model.slices import PortRange
from nat_rewriter.model.tuples import FlowTuple


@pytest.fixture(scope="module")
def policy() -> Policy:
    return read_policy(CONFIG.encode(), "test")


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


def test_an_answer_may_come_from_another_hosts_part_of_a_shared_address() -> None:
    shared = '[[slice]]\nname = "theirs"\naddress = "203.0.113.1"\nports = ["5000"]\n'
    one = explained(read_policy((CONFIG + shared).encode(), "test"), TCP, HELD)
    assert set(fates(one, "inbound").values()) == {"continues"}
    (guard,) = (step for step in one.configured.inbound.steps if step.station == "guard")
    assert guard.does == "came in as the answer to a client that was rewritten"
    led = HELD.flows[0] if HELD.flows else None
    assert led is not None
    both = replace(HELD, flows=(replace(led, status=led.status | Status.DST_NAT),))
    one = explained(read_policy((CONFIG + shared).encode(), "test"), TCP, both)
    assert set(fates(one, "inbound").values()) == {"dropped"}


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


def test_an_entry_that_is_over_makes_way(policy: Policy) -> None:
    over = replace(local_flow(9000, 50000), state="TIME_WAIT")
    one = explained(single(policy), TCP, Situation(flows=(over,), sockets=()))
    assert fates(one) == {"off": "kept", "confine": "kept", "refuse": "kept", "split": "refused"}
    assert "makes way" in one.configured.socket.steps[1].does
    # One of a NAT flow does not: it holds the tuple of somebody else.
    held = Situation(flows=(nat_flow(1, 9000, "TIME_WAIT"),), sockets=())
    assert explained(single(policy), TCP, held).configured.socket.fate is Fate.MOVED


def test_an_idle_socket_does_not_protect_its_tuple(policy: Policy) -> None:
    idle = SeenSocket("ESTABLISHED", "tcp", TCP.src, 9000, TCP.dst, 443, 1, 0)
    one = explained(policy, TCP, Situation(flows=(), sockets=(idle,)))
    assert set(fates(one, "forwarded").values()) == {"takes-anyway"}
    assert one.sockets == (idle,)
    assert one.another_socket == ("EADDRINUSE from bind()", "EADDRNOTAVAIL from connect()")


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


@pytest.mark.parametrize("spread", ["client", "random"])
def test_many_ranges_are_told_in_few_words(spread: str) -> None:
    ports = "psid = { offset = 6, length = 8, id = 52 }"
    text = CONFIG.replace('ports = ["9000-9009", "9100-9119"]', ports).replace('ports = ["9000-9004"]\n', "")
    many = read_policy(text.replace('name = "all"', f'name = "all"\nspread = "{spread}"').encode(), "test")
    one = explained(many, packet("udp").tuple, iifname="fish0")
    assert len(one.targets) == 63
    lines = ["".join(span for span, _ in line) for line in explanation_lines(one)]
    assert max(map(len, lines)) < 260
    assert sum("slice ams-1" in line for line in lines) < 20
    assert any("more, which --json lists" in line for line in lines)
    assert sum(line.startswith("    → slice ams-1") for line in lines) == (spread == "client")


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
