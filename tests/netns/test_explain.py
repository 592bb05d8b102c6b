"""What ``natctl explain`` foretells of sockets and packets, compared with what the kernel then does."""

from __future__ import annotations

import json
import os
import sys

import pytest
from foretelling import (
    FAMILIES,
    PORTS,
    SERVERS,
    SOFT,
    LabFactory,
    applied,
    assert_foretold,
    client_address,
    end,
    explain,
    explain_by_command,
    hold_a_port,
    list_flows,
    serve,
    try_socket,
)

from netns_lab import Lab, round_trip
from netns_lab.topology import CLIENT, SERVER, SOFT_ADDRESS


@pytest.mark.parametrize(
    ("coexist", "guard"),
    [("off", "drop"), ("off", "count"), ("off", "off"), ("confine", "drop"), ("refuse", "drop"), ("split", "drop")],
)
@FAMILIES
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_what_a_socket_meets_is_foretold(lab: Lab, protocol: str, family: int, coexist: str, guard: str) -> None:
    serve(lab)
    other = applied(lab, coexist="off" if coexist != "off" else "confine", guard=guard)
    _, held = hold_a_port(lab, protocol, family)
    free = 9000 + (held - 9000 + 5) % 10
    soft, server = SOFT[family], SERVERS[family]
    # The free one first: a socket that is moved may be moved there.
    wanted = {port: (protocol, end(soft, port), end(server, PORTS[protocol])) for port in (free, held)}
    # The same is foretold in another mode, and in the one that is in force.
    before = {port: explain(lab, other, *words)["modes"][coexist]["socket"] for port, words in wanted.items()}
    config = applied(lab, coexist=coexist, guard=guard)
    for port, words in wanted.items():
        told = explain(lab, config, *words)
        outcome = told["modes"][coexist]["socket"]
        assert outcome["outcome"] == before[port]["outcome"]
        assert_foretold(outcome, port, try_socket(lab, protocol, soft, port, server))
        if port == held:
            (flow,) = told["holders"]["flows"]
            assert flow["type"] == "nat-flow"
            assert ("claim" in told["holders"]) == (coexist == "refuse")
    expected = {
        "off": {"drop": "dropped"}.get(guard, "leaked"), "confine": "moved", "refuse": "refused", "split": "refused",
    }  # fmt: skip
    assert before[held]["outcome"] == expected[coexist]
    assert before[free]["outcome"] == ("refused" if coexist == "split" else "kept")


@FAMILIES
def test_a_split_slice_is_explained_on_both_sides(lab: Lab, family: int) -> None:
    serve(lab)
    config = lab.config(coexist="split")
    config.write_text(config.read_text().replace("protocols =", 'socket_ports = ["9008-9009"]\nprotocols ='))
    lab.natctl("apply", "-q", "--config", config, expect=0)
    soft, server = SOFT[family], SERVERS[family]
    for port, fate, taking in ((9000, "refused", "may-take"), (9008, "kept", "never")):
        told = explain(lab, config, "tcp", end(soft, port), end(server, 443))["modes"]["split"]
        assert (told["socket"]["outcome"], told["forwarded"]["outcome"]) == (fate, taking)
        assert_foretold(told["socket"], port, try_socket(lab, "tcp", soft, port, server))
    flows = {lab.client.tcp_connect((server, 443)).getsockname()[1] for _ in range(8)}
    taken = {one.reply.dport for one in list_flows(lab) if one.original.sport in flows}
    assert taken == set(range(9000, 9008))
    client = client_address(2, family)
    told = explain(lab, config, "tcp", end(client, 40000), end(server, 443))["modes"]["split"]["forwarded"]
    assert told["outcome"] == "exhausted"
    with pytest.raises(TimeoutError):
        lab.client.tcp_connect((server, 443), src=(client, 40000), timeout_s=0.3)


@FAMILIES
def test_a_full_range_is_foretold(lab_factory: LabFactory, family: int) -> None:
    lab = lab_factory(slices=("198.51.100.10:9000-9001", "[2001:db8:100::10]:9000-9001"))
    serve(lab)
    config = applied(lab, coexist="confine")
    server, soft, client = SERVERS[family], SOFT[family], client_address(2, family)
    lab.client.tcp_connect((server, 443))
    # One port is left, so that the very port is known.
    told = explain(lab, config, "tcp", end(client, 40000), end(server, 443))["snat"]["port"]
    assert told["free"] == 1
    lab.client.tcp_connect((server, 443), src=(client, 40000))
    (wire,) = [one.reply.dport for one in list_flows(lab) if one.original.sport == 40000]
    assert wire == told["port"]
    told = explain(lab, config, "tcp", end(soft, wire), end(server, 443))["modes"]["confine"]
    assert told["socket"]["outcome"] == "exhausted"
    assert_foretold(told["socket"], wire, try_socket(lab, "tcp", soft, wire, server))


def test_a_taken_port_moves_to_another_range_of_its_slice(lab_factory: LabFactory) -> None:
    lab = lab_factory(slices=("198.51.100.10:9000-9001,9100-9109",))
    serve(lab)
    config = applied(lab, coexist="confine")
    sock, held = hold_a_port(lab, "tcp", 4)
    told = explain(lab, config, "tcp", end(SOFT_ADDRESS, held), end(SERVER, 443))["modes"]["confine"]["socket"]
    assert (told["outcome"], told["ports"]) == ("moved", ["9000-9001", "9100-9109"])
    assert_foretold(told, held, try_socket(lab, "tcp", SOFT_ADDRESS, held, SERVER))
    assert round_trip(sock)


# --- the other ways a packet can go


@FAMILIES
def test_a_socket_that_conntrack_does_not_know_loses_its_port(lab_factory: LabFactory, family: int) -> None:
    lab = lab_factory(slices=("198.51.100.10:9000", "[2001:db8:100::10]:9000"))
    serve(lab)
    config = applied(lab, coexist="confine")
    soft, server = SOFT[family], SERVERS[family]
    words = ("udp", end(soft, 9000), end(server, 53))
    assert explain(lab, config, *words)["modes"]["confine"]["forwarded"]["outcome"] == "may-take"
    idle = lab.egress.udp_connect((server, 53), src=(soft, 9000), timeout_s=0.3)
    told = explain(lab, config, *words)
    (holder,) = told["holders"]["sockets"]
    assert (holder["sport"], holder["pid"]) == (9000, os.getpid())
    assert told["modes"]["confine"]["forwarded"]["outcome"] == "takes-anyway"
    _, held = hold_a_port(lab, "udp", family)
    assert held == 9000
    told = explain(lab, config, *words)["modes"]["confine"]
    assert (told["forwarded"]["outcome"], told["socket"]["outcome"]) == ("avoids", "exhausted")
    with pytest.raises(PermissionError):
        idle.send(b"natctl")


DNAT = """
[[dnat]]
name = "inbound"
slice = "ams-1"
ports = ["9000-9004"]
to = "10.0.0.2:80"
"""


@pytest.mark.parametrize("coexist", ["off", "confine", "refuse", "split"])
def test_unsolicited_packets_go_where_it_is_foretold(lab: Lab, coexist: str) -> None:
    inside, here = lab.client.tcp_server(80), lab.egress.tcp_server(9005)
    config = applied(lab, coexist=coexist, extra=DNAT)
    sent_on = explain(lab, config, "tcp", end(SERVER, 5000), end(SOFT_ADDRESS, 9001))
    assert sent_on["turned"]
    assert sent_on["dnat"] == {"rule": "inbound", "dst": "10.0.0.2", "dport": 80}
    assert sent_on["modes"][coexist]["inbound"]["outcome"] == "sent-on"
    assert round_trip(lab.server.tcp_connect((SOFT_ADDRESS, 9001), src=(SERVER, 5000)))
    assert inside.peers == [(SERVER, 5000)]
    delivered = explain(lab, config, "tcp", end(SOFT_ADDRESS, 9005), end(SERVER, 5001))
    assert delivered["holders"]["sockets"][0]["state"] == "LISTEN"
    fate = delivered["modes"][coexist]["inbound"]["outcome"]
    assert fate == ("refused" if coexist == "split" else "delivered")
    if fate == "refused":
        with pytest.raises(ConnectionRefusedError):
            lab.server.tcp_connect((SOFT_ADDRESS, 9005), src=(SERVER, 5001))
    else:
        assert round_trip(lab.server.tcp_connect((SOFT_ADDRESS, 9005), src=(SERVER, 5001)))
        assert here.peers == [(SERVER, 5001)]


@FAMILIES
def test_an_echo_id_is_moved_as_foretold(lab: Lab, family: int) -> None:
    config = applied(lab, coexist="confine")
    soft, server = SOFT[family], SERVERS[family]
    source = f"[{soft}]:77" if family == 6 else f"{soft}:77"
    told = explain(lab, config, "icmp", source, server)["modes"]["confine"]["socket"]
    assert (told["outcome"], told["ports"]) == ("moved", ["9000-9009"])
    assert lab.egress.ping(server, src=soft, ident=77)
    (flow,) = [one for one in list_flows(lab) if one.original.sport == 77]
    assert 9000 <= flow.reply.dport <= 9009


def test_rules_are_tried_in_file_order_with_reasons(lab: Lab) -> None:
    extra = """
[[snat]]
name = "later"
oifname = "up0"
slices = ["ams-1"]
"""
    config = applied(lab, extra=extra)
    text = config.read_text()
    at = text.index("[[snat]]")
    marked = '[[snat]]\nname = "marked"\nmark = 16\nslices = ["ams-1"]\nexclude = ["203.0.113.9"]\n\n'
    config.write_text(text[:at] + marked + text[at:])
    tried = explain(lab, config, "tcp", f"{CLIENT}:40000", f"{SERVER}:443")["snat"]["tried"]
    assert [(one["rule"], one["match"]) for one in tried] == [
        ("marked", "differs"), ("clients-ipv4", "takes"), ("clients-ipv6", "not-reached"), ("later", "not-reached"),
    ]  # fmt: skip
    told = explain_by_command(lab, config, "tcp", f"{CLIENT}:40000", "203.0.113.9:443", "--mark", "0x10")
    assert told["snat"]["tried"][0]["match"] == "excludes"
    assert told["modes"]["confine"]["forwarded"]["outcome"] == "unchanged"
    # A packet of this host has come in by no interface, so that only the last rule takes it.
    own = explain(lab, config, "tcp", "100.64.0.2:40000", f"{SERVER}:443")["modes"]["confine"]["socket"]
    assert own["outcome"] == "rewritten"
    assert "later" in own["text"]


# --- how the command behaves


def test_a_drifted_table_is_told(lab: Lab) -> None:
    config = lab.config()
    assert explain(lab, config, "tcp", f"{CLIENT}:40000", f"{SERVER}:443")["table"] == "absent"
    applied(lab)
    assert explain(lab, config, "tcp", f"{CLIENT}:40000", f"{SERVER}:443")["table"] == "live"
    lab.egress.run(["nft", "add", "chain", "inet", "natctl", "intruder"])
    assert explain(lab, config, "tcp", f"{CLIENT}:40000", f"{SERVER}:443")["table"] == "differs"


def test_hooks_come_in_the_order_a_packet_passes_them(lab: Lab) -> None:
    config = applied(lab, coexist="refuse", extra=DNAT)
    told = explain(lab, config, "tcp", end(SOFT_ADDRESS, 9005), end(SERVER, 443))["modes"]["refuse"]
    ways = {name: [step["station"] for step in told[name]["hooks"]] for name in ("socket", "forwarded")}
    assert ways["socket"] == ["begin", "conntrack", "refuse_out", "srcnat", "leaving", "guard", "confirm", "end"]
    assert ways["forwarded"] == [
        "begin", "conntrack", "arriving", "dstnat", "routing", "srcnat", "leaving", "guard", "confirm", "end",
    ]  # fmt: skip
    listed = json.loads(lab.egress.run(["nft", "-j", "list", "chains", "inet"]).stdout)["nftables"]
    chains = [one["chain"] for one in listed if "chain" in one]
    live = {chain["name"]: (chain.get("hook"), chain.get("prio")) for chain in chains}
    for step in told["socket"]["hooks"]:
        if step["station"] in live:
            assert live[step["station"]] == (step["hook"], step["priority"])


def test_without_privilege_it_says_what_it_could_not_ask(lab: Lab) -> None:
    config = lab.config()
    config.parent.chmod(0o755)
    command = [sys.executable, "-m", "nat_rewriter", "explain", "tcp", f"{SOFT_ADDRESS}:9000", f"{SERVER}:443"]
    options = ["--json", "--config", str(config)]
    without = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command, *options]
    done = lab.egress.run(without, check=False)
    if "setpriv" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert any("CAP_NET_ADMIN" in text for text in told["unanswered"])
    assert "flows" not in told["holders"]
    assert told["modes"]["off"]["socket"]["outcome"] == "kept"


@pytest.mark.parametrize("words", [("tcp",), ("tcp", "1.2.3.4", "5.6.7.8"), ("sctp 198.51.100.10:1 203.0.113.1:2",)])
def test_a_bad_tuple_ends_with_two_and_the_expected_forms(lab: Lab, words: tuple[str, ...]) -> None:
    done = lab.natctl("explain", *words, "--config", lab.config())
    assert done.exit_code == 2
    assert "tcp 198.51.100.10:9000 203.0.113.1:443" in done.stderr


def test_text_is_plain_in_a_pipe_and_says_the_same(lab: Lab) -> None:
    config = applied(lab)
    text = lab.natctl("explain", "tcp", f"{CLIENT}:40000", f"{SERVER}:443", "--config", config, expect=0).stdout
    assert "\x1b" not in text
    for expected in ("[[snat]] clients-ipv4", "slice ams-1, 198.51.100.10 9000-9009", "→ confine", "postrouting"):
        assert expected in text
