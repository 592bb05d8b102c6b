"""The range and port that ``natctl explain`` foretells, and the one that the kernel gives."""

from __future__ import annotations

import pytest
from foretelling import (
    FAMILIES,
    SERVERS,
    LabFactory,
    applied,
    client_address,
    end,
    explain,
    explain_by_command,
    list_flows,
    send_from,
    wait_for_addresses,
)

from nat_rewriter.config import read_policy
from nat_rewriter.explain import Packet, parse_tuple
from nat_rewriter.explain.hashing import number_of
from nat_rewriter.explain.matching import chosen_target

CLIENTS = 220
# Ranges of several sizes, over two slices of two addresses.
MANY_RANGES = (
    "198.51.100.10:9000-9099,9200-9249,9300-9449",
    "198.51.100.11:7000-7099",
    "[2001:db8:100::10]:9000-9099,9200-9249,9300-9449",
    "[2001:db8:100::11]:7000-7099",
)

KEYS = {
    "client": "{ip} saddr",
    "flow": "{ip} saddr . th sport . {ip} daddr . th dport",
    "echo": "{ip} saddr . {ip} daddr . {icmp} id",
}


@FAMILIES
@pytest.mark.parametrize("key", KEYS)
def test_the_hash_is_the_kernels_bit_by_bit(lab_factory: LabFactory, family: int, key: str) -> None:
    lab = lab_factory(clients=32)
    wait_for_addresses(lab)
    words = {4: {"ip": "ip", "icmp": "icmp"}, 6: {"ip": "ip6", "icmp": "icmpv6"}}[family]
    # With this modulus the scaled number is the hash itself, less one.
    expression = f"jhash {KEYS[key].format(**words)} mod 4294967295 seed 0xd3adc0de"
    protocol = {4: "icmp", 6: "ipv6-icmp"}[family] if key == "echo" else "udp"
    lab.egress.nft(
        "table inet t { chain c { type filter hook postrouting priority 0;"
        f" meta l4proto {protocol} ct mark set {expression}; }}\n}}"
    )
    for number in range(2, 34):
        address, server = client_address(number, family), SERVERS[family]
        if key == "echo":
            lab.client.ping(server, src=address, ident=1000 * number, timeout_s=0.01)
        else:
            send_from(lab, address, 1000 * number, (server, 53 + number))
    flows = [flow for flow in list_flows(lab) if flow.mark]
    assert len(flows) == 32
    for flow in flows:
        assert number_of(expression, flow.original) == flow.mark, str(flow.original)


@FAMILIES
@pytest.mark.parametrize("spread", ["client", "flow"])
def test_the_range_of_every_client_is_foretold(lab_factory: LabFactory, family: int, spread: str) -> None:
    lab = lab_factory(slices=MANY_RANGES, clients=CLIENTS)
    wait_for_addresses(lab)
    config = applied(lab, coexist="confine", spread=spread)
    (rule,) = [rule for rule in read_policy(config).snat if rule.name == f"clients-ipv{family}"]
    server = SERVERS[family]
    for number in range(2, 2 + CLIENTS):
        send_from(lab, client_address(number, family), 20000 + 7 * number, (server, 53 + number % 3))
    flows = [flow for flow in list_flows(lab) if any(flow.original.src in network for network in rule.source)]
    assert len(flows) == CLIENTS
    used = set()
    for flow in flows:
        target = chosen_target(rule, Packet(flow.original))
        assert target is not None
        assert (flow.reply.dst, flow.reply.dport in target.ports) == (target.address, True), str(flow.original)
        used.add((target.address, target.ports))
    assert len(used) == 4


@FAMILIES
def test_the_range_of_an_echo_is_foretold(lab_factory: LabFactory, family: int) -> None:
    lab = lab_factory(slices=MANY_RANGES, clients=40)
    wait_for_addresses(lab)
    config = applied(lab, coexist="confine", spread="flow")
    (rule,) = [rule for rule in read_policy(config).snat if rule.name == f"clients-ipv{family}"]
    server = SERVERS[family]
    foretold = {}
    for number in range(2, 42):
        address = client_address(number, family)
        echo = parse_tuple(["icmp", f"[{address}]:{number}" if family == 6 else f"{address}:{number}", server])
        foretold[echo] = chosen_target(rule, Packet(echo))
        assert lab.client.ping(server, src=address, ident=number)
    seen = {flow.original: flow.reply for flow in list_flows(lab) if flow.original in foretold}
    assert len(seen) == 40
    for echo, target in foretold.items():
        assert target is not None
        assert (seen[echo].dst, seen[echo].dport in target.ports) == (target.address, True), str(echo)


@FAMILIES
def test_the_command_says_range_port_and_room(lab_factory: LabFactory, family: int) -> None:
    lab = lab_factory(slices=MANY_RANGES, clients=4)
    wait_for_addresses(lab)
    config = applied(lab, coexist="confine")
    client, server = client_address(3, family), SERVERS[family]
    told = explain_by_command(lab, config, "udp", end(client, 5000), end(server, 53))
    assert (told["kind"], told["iifname"], told["oifname"], told["table"]) == ("client", "fish0", "up0", "live")
    assert told["snat"]["rule"] == f"clients-ipv{family}"
    assert [one["match"] for one in told["snat"]["tried"]] == (
        ["takes", "not-reached"] if family == 4 else ["differs", "takes"]
    )
    send_from(lab, client, 5000, (server, 53))
    again = explain(lab, config, "udp", end(client, 5000), end(server, 53))
    first, last = map(int, told["snat"]["target"]["range"].split("-"))
    assert again["wire"]["src"] == told["snat"]["target"]["address"]
    assert first <= again["wire"]["sport"] <= last
    assert again["snat"]["port"]["free"] == told["snat"]["port"]["free"] - 1
    assert again["modes"]["confine"]["forwarded"]["outcome"] == "continues"
    (flow,) = again["holders"]["flows"]
    assert flow["type"] == "nat-flow"
    # Its source port has that port towards other destinations too: find_appropriate_src().
    other = explain(lab, config, "udp", end(client, 5000), end(server, 54))["snat"]["port"]
    assert (other["choice"], other["port"]) == ("reused", again["wire"]["sport"])
    send_from(lab, client, 5000, (server, 54))
    (wire,) = [flow.reply.dport for flow in list_flows(lab) if flow.original.dport == 54]
    assert wire == other["port"]
