"""``natctl flows`` against conntrack(8), entry by entry, on a table with everything in it."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from netns_lab import Lab
from netns_lab.host import round_trip

SERVER, SERVER6 = "203.0.113.1", "2001:db8:203::1"
SOFT = "198.51.100.10"
ZONES_AND_MARKS = """
table inet test_marks {
  chain zones {
    type filter hook prerouting priority -300;
    iifname "fish0" udp dport 5353 ct zone set 7;
  }
  chain marks {
    type filter hook prerouting priority -100;
    tcp dport 8080 ct mark set 0x17;
  }
}
"""


@pytest.fixture
def config(lab: Lab) -> Path:
    path = lab.config(coexist="off", guard="off")
    lab.natctl("apply", "--config", path, expect=0)
    return path


@pytest.fixture
def busy(lab: Lab, config: Path) -> Path:
    """A table with TCP, UDP and ICMP, IPv4 and IPv6, rewritten and not, with zones and marks."""
    lab.egress.sysctl("net.netfilter.nf_conntrack_acct", 1)
    lab.egress.nft(ZONES_AND_MARKS)
    for port in (443, 8080):
        lab.server.tcp_server(port)
    lab.server.udp_server(53)
    for server, soft in ((SERVER, SOFT), (SERVER6, "2001:db8:100::10")):
        lab.egress.tcp_connect((server, 443), src=(soft, 9005))  # first, so that no NAT flow has its port
        lab.client.tcp_connect((server, 443))
        lab.client.tcp_connect((server, 8080)).close()
        assert round_trip(lab.client.udp_connect((server, 53)))
        for port in (99, 5353):
            lab.client.udp_connect((server, port)).send(b"nobody answers")
        lab.client.ping(server)
        lab.client.ping("10.0.0.1" if server == SERVER else "2001:db8:10::1")
        lab.egress.ping(server)
    lab.client.tcp_start(("192.0.2.99", 81))
    return config


def test_json_agrees_with_conntrack_entry_by_entry(lab: Lab, busy: Path) -> None:
    theirs = read_xml(lab.egress.run(["conntrack", "-L", "-o", "xml,id"]).stdout)
    echo_ids = read_echo_ids(lab.egress.run(["conntrack", "-L", "-o", "extended,id"]).stdout)
    ours = {flow["id"]: flow for flow in lab.natctl("flows", "--json", "--config", busy, expect=0).lines()}
    assert len(ours) >= 18
    assert ours.keys() == theirs.keys()
    for flow_id, flow in ours.items():
        timeout_s = theirs[flow_id].pop("timeout_s")
        ids = [flow[direction].pop("icmp_id") for direction in ("original", "reply") if "icmp_id" in flow[direction]]
        assert ids == echo_ids.get(flow_id, [])
        assert comparable(flow) == theirs[flow_id]
        assert 0 <= timeout_s - flow["timeout_s"] <= 5
    protocols = {flow["protocol"] for flow in ours.values()}
    assert protocols == {"tcp", "udp", "icmp", "icmpv6"}
    assert {flow["zone"] for flow in ours.values()} == {0, 7}
    assert {flow["mark"] for flow in ours.values()} == {0, 0x17}


def test_slice_and_origin(lab: Lab, busy: Path) -> None:
    found = lab.natctl("flows", "--json", "--config", busy, expect=0).lines()
    local = [flow for flow in found if flow.get("origin") == "local"]
    assert {flow["slice"] for flow in local if flow["protocol"] == "tcp"} == {"ams-1", "ams-2"}
    forwarded = [flow for flow in found if flow.get("origin") == "forwarded"]
    assert all("src-nat" in flow["status"] for flow in forwarded)
    assert {flow["slice"] for flow in forwarded} == {"ams-1", "ams-2"}
    apart = [flow for flow in found if "origin" not in flow]
    assert {flow["original"]["dst"] for flow in apart} >= {"10.0.0.1", "2001:db8:10::1"}
    assert not any("slice" in flow for flow in apart)


@pytest.mark.parametrize(
    ("options", "keeps"),
    [
        (["--slice", "ams-2"], lambda flow: flow.get("slice") == "ams-2"),
        (["--address", "10.0.0.0/24"], lambda flow: "10.0.0." in json.dumps(flow)),
        (["--address", "2001:db8:10::2"], lambda flow: '"2001:db8:10::2"' in json.dumps(flow)),
        (["--port", "443"], lambda flow: flow["original"].get("dport") == 443),
        (["--protocol", "icmpv6"], lambda flow: flow["protocol"] == "icmpv6"),
        (["--protocol", "17"], lambda flow: flow["protocol"] == "udp"),
        (["--state", "ESTABLISHED"], lambda flow: flow.get("state") == "ESTABLISHED"),
        (["--state", "unreplied"], lambda flow: "seen-reply" not in flow["status"]),
        (["--origin", "local", "--protocol", "tcp"], lambda f: f.get("origin") == "local" and f["protocol"] == "tcp"),
        (["--nat"], lambda flow: "src-nat" in flow["status"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_filters(lab: Lab, busy: Path, options: list[str], keeps: Any) -> None:
    everything = {flow["id"]: flow for flow in lab.natctl("flows", "--json", "--config", busy, expect=0).lines()}
    found = {flow["id"] for flow in lab.natctl("flows", "--json", "--config", busy, *options, expect=0).lines()}
    assert found == {flow_id for flow_id, flow in everything.items() if keeps(flow)}
    assert 0 < len(found) < len(everything)


def test_lines_and_other_words(lab: Lab, config: Path) -> None:
    lab.server.tcp_server(443)
    sock = lab.client.tcp_connect((SERVER, 443))
    port = sock.getsockname()[1]
    line = lab.natctl("flows", "--config", config, expect=0).stdout.splitlines()[0]
    assert line.startswith(f"tcp ESTABLISHED ams-1 forwarded 10.0.0.2:{port} -> {SERVER}:443 wire {SOFT}:90")
    for wrong in (["--slice", "none"], ["--address", "10.0.0"], ["--port", "70000"], ["--protocol", "none"]):
        outcome = lab.natctl("flows", "--config", config, *wrong, expect=2)
        assert wrong[1] in outcome.stderr


def read_xml(text: str) -> dict[int, dict[str, Any]]:
    """Return conntrack's entries by id, in the words of `natctl flows`."""
    entries = (read_entry(entry) for entry in ET.fromstring(text).iter("flow"))
    return {entry["id"]: entry for entry in entries}


def read_echo_ids(text: str) -> dict[int, list[int]]:
    """Return the echo ids of both tuples by entry: conntrack's XML has none."""
    ids = [[int(number) for number in re.findall(r"\bid=(\d+)", line)] for line in text.splitlines() if "icmp" in line]
    return {found[-1]: found[:2] for found in ids}


def read_entry(entry: ET.Element) -> dict[str, Any]:
    meta = {one.get("direction"): one for one in entry.iter("meta")}
    alone = meta["independent"]
    original, reply = read_direction(meta["original"]), read_direction(meta["reply"])
    fields = {
        "id": int(alone.findtext("id", "0")),
        "protocol": meta["original"].find("layer4").get("protoname"),
        "state": alone.findtext("state"),
        "original": original[0], "reply": reply[0],
        "mark": int(alone.findtext("mark", "0")), "zone": int(alone.findtext("zone", "0")),
        "packets": [original[1], reply[1]], "bytes": [original[2], reply[2]],
        "replied": alone.find("unreplied") is None, "assured": alone.find("assured") is not None,
        "timeout_s": int(alone.findtext("timeout", "0")),
    }  # fmt: skip
    return {name: value for name, value in fields.items() if value is not None}


def read_direction(meta: ET.Element) -> tuple[dict[str, Any], int, int]:
    layer3, layer4 = meta.find("layer3"), meta.find("layer4")
    ends: dict[str, Any] = {"src": layer3.findtext("src"), "dst": layer3.findtext("dst")}
    if layer4.find("sport") is not None:
        ends |= {"sport": int(layer4.findtext("sport")), "dport": int(layer4.findtext("dport"))}
    counters = meta.find("counters")
    return ends, int(counters.findtext("packets")), int(counters.findtext("bytes"))


def comparable(flow: dict[str, Any]) -> dict[str, Any]:
    """Return one of our flows as :func:`read_entry` returns conntrack's."""
    kept = {name: value for name, value in flow.items() if name not in ("status", "slice", "origin", "timeout_s")}
    return kept | {"replied": "seen-reply" in flow["status"], "assured": "assured" in flow["status"]}


# summed up, and by age


def test_top_agrees_with_conntrack(lab: Lab, busy: Path) -> None:
    listed = lab.egress.run(["conntrack", "-L"]).stdout.splitlines()
    clients = Counter(re.findall(r"src=(\S+)", line)[0] for line in listed)
    found = lab.natctl("flows", "--json", "--top", "clients", "--config", busy, expect=0).lines()
    assert {one["client"]: one["flows"] for one in found} == clients
    assert [one["flows"] for one in found] == sorted(clients.values(), reverse=True)
    assert all(one["bytes"] > 0 for one in found)
    web = sum(f"dst={SERVER} " in line and "dport=443 " in line and line.startswith("tcp") for line in listed)
    (first,) = lab.natctl(
        "flows", "--json", "--top", "destinations", "--limit", "1", "--address", SERVER, "--port", "443",
        "--config", busy, expect=0,
    ).lines()  # fmt: skip
    assert (first["protocol"], first["destination"], first["flows"]) == ("tcp", f"{SERVER}:443", web)
    text = lab.natctl("flows", "--top", "slices", "--config", busy, expect=0).stdout
    assert re.match(r"\d+ \d+\.\d% \d+(\.\d)?[KM]?i?B ams-\d\n", text)


def test_heat_map(lab: Lab, config: Path) -> None:
    lab.server.tcp_server(443)
    for port in (9001, 9002, 9007):
        lab.client.tcp_connect((SERVER, 443), src=("10.0.0.2", port))
    lab.client.tcp_connect(("203.0.113.2", 443), src=("10.0.0.2", 9005))
    lines = lab.natctl("flows", "--heatmap", "ams-1", "--config", config, expect=0).stdout.splitlines()
    assert lines == [
        f"slice ams-1  {SOFT}  10 ports, one port a cell",
        "                    9000  9009",
        "tcp 203.0.113.1:443  @@    @  | 3",
        "tcp 203.0.113.2:443      @    | 1",
    ]
    told = lab.natctl("flows", "--json", "--heatmap", "ams-1", "--limit", "1", "--config", config, expect=0).json()
    assert told["destinations"][0]["shares"] == [0, 1, 1, 0, 0, 0, 0, 1, 0, 0]
    assert told["others"] == 1
    assert "expected one of ams-1" in lab.natctl("flows", "--heatmap", "ams-9", "--config", config, expect=2).stderr
    both = lab.natctl("flows", "--heatmap", "ams-1", "--top", "slices", "--config", config, expect=2)
    assert "give one of them" in both.stderr


def test_age(lab: Lab, config: Path) -> None:
    lab.server.tcp_server(443)
    lab.client.tcp_connect((SERVER, 443))
    refused = lab.natctl("flows", "--older-than", "1s", "--config", config, expect=4)
    assert "nf_conntrack_timestamp" in refused.stderr
    lab.egress.sysctl("net.netfilter.nf_conntrack_timestamp", 1)
    began = datetime.now(UTC)
    lab.client.tcp_connect(("203.0.113.2", 443))
    (young,) = lab.natctl("flows", "--json", "--younger-than", "1h", "--config", config, expect=0).lines()
    assert young["original"]["dst"] == "203.0.113.2"
    assert abs(datetime.fromisoformat(young["start"]) - began) < timedelta(seconds=2)
    assert lab.natctl("flows", "--json", "--older-than", "1h", "--config", config, expect=0).lines() == []
    assert "expected a number and one of" in lab.natctl("flows", "--older-than", "x", expect=2).stderr
