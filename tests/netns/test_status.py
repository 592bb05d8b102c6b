"""``natctl status`` against what the lab did."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

import pytest

from netns_lab import Lab, round_trip

LabFactory = Callable[..., Lab]
SERVER, SERVER_6 = "203.0.113.1", "2001:db8:203::1"
SOFT, SOFT_6 = "198.51.100.10", "2001:db8:100::10"


def test_a_fresh_host(lab: Lab) -> None:
    path = lab.config()
    lab.natctl("apply", "--config", path, expect=0)
    told = lab.natctl("status", "--json", "--config", path, expect=0).json()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", told.pop("time"))
    sysctls, conntrack = told.pop("sysctls"), told.pop("conntrack")
    assert (sysctls["net.ipv4.ip_forward"], sysctls["net.ipv6.conf.all.forwarding"]) == ("1", "1")
    assert conntrack["max"] > 0
    none = {
        "tcp": {"forwarded": 0, "local": 0},
        "udp": {"forwarded": 0, "local": 0},
        "icmp": {"forwarded": 0, "local": 0},
    }
    each = {"ports": ["9000-9009"], "protocols": ["tcp", "udp", "icmp"], "size": 10, "flows": none}
    assert told == {
        "table": "natctl",
        "coexist": "confine",
        "guard": "drop",
        "slices": [{"name": "ams-1", "address": SOFT, **each}, {"name": "ams-2", "address": SOFT_6, **each}],
        "flows_outside": 0,
        "busiest": [],
        "strays": [],
        "drift": [],
    }


def test_flows_are_counted_by_slice_protocol_and_origin(lab: Lab) -> None:
    path = lab.config()
    lab.natctl("apply", "--config", path, expect=0)
    lab.server.tcp_server(443)
    lab.server.udp_server(53)
    kept = [lab.client.tcp_connect((SERVER, 443)) for _ in range(3)]
    kept += [lab.client.tcp_connect((SERVER_6, 443)), lab.egress.tcp_connect((SERVER, 443), src=(SOFT, 9007))]
    udp = lab.client.udp_connect((SERVER, 53))
    assert round_trip(udp)
    assert lab.egress.ping(SERVER, src=SOFT, ident=9003)
    lab.egress.tcp_connect((SERVER, 443))  # from the host's own address: nobody's slice
    told = lab.natctl("status", "--json", "--config", path, expect=0).json()
    first, second = (each["flows"] for each in told["slices"])
    assert first == {
        "tcp": {"forwarded": 3, "local": 1},
        "udp": {"forwarded": 1, "local": 0},
        "icmp": {"forwarded": 0, "local": 1},
    }
    assert second["tcp"] == {"forwarded": 1, "local": 0}
    assert told["flows_outside"] == 0
    assert told["conntrack"]["entries"] >= 8
    busiest = told["busiest"][0]
    assert busiest == {
        "slice": "ams-1", "protocol": "tcp", "destination": f"{SERVER}:443", "used": 4, "capacity": 10, "headroom": 6,
        "findable": 6,
    }  # fmt: skip
    assert len(kept) == 5


def test_a_full_slice_has_no_headroom_there_and_all_of_it_elsewhere(lab: Lab) -> None:
    path = lab.config()
    lab.natctl("apply", "--config", path, expect=0)
    lab.server.tcp_server(443)
    for _ in range(10):
        lab.client.tcp_connect((SERVER, 443))
    lab.client.tcp_connect(("203.0.113.2", 443))
    told = lab.natctl("status", "--json", "--top", "1", "--config", path, expect=0).json()
    assert [(use["destination"], use["headroom"]) for use in told["busiest"]] == [(f"{SERVER}:443", 0)]
    more = lab.natctl("status", "--json", "--config", path, expect=0).json()["busiest"]
    assert [(use["destination"], use["headroom"]) for use in more[1:]] == [("203.0.113.2:443", 9)]


@pytest.mark.parametrize("guard", ["drop", "count"])
def test_strays_are_told(guard: str, lab: Lab) -> None:
    path = lab.config(coexist="off", guard=guard)
    lab.natctl("apply", "--config", path, expect=0)
    with pytest.raises(TimeoutError):
        lab.egress.tcp_connect((SERVER, 443), src=(SOFT, 8999), timeout_s=0.2)
    with suppress(PermissionError):  # a local datagram that is dropped on its way out is an error of its sender
        lab.egress.udp_connect((SERVER_6, 53), src=(SOFT_6, 7)).send(b"natctl")
    told = lab.natctl("status", "--json", "--config", path, expect=3).json()
    strays = {stray["protocol"]: stray for stray in told["strays"]}
    assert strays["tcp"]["tuple"] == {"src": SOFT, "sport": 8999, "dst": SERVER, "dport": 443}
    assert strays["udp"]["tuple"] == {"src": SOFT_6, "sport": 7, "dst": SERVER_6, "dport": 53}
    assert strays["udp"]["packets"] >= 1
    assert all(0 <= stray["last_seen_s"] < 20 for stray in strays.values())
    lines = lab.natctl("status", "--config", path, expect=3).stdout
    assert re.search(rf"^stray tcp {SOFT}:8999 {SERVER}:443 packets=\d+ last-seen=\d+s$", lines, re.MULTILINE)
    assert lab.natctl("status", "-q", "--config", path, expect=3).stdout == ""


def test_flows_outside_every_slice_are_counted(lab: Lab) -> None:
    path = lab.config(coexist="off", guard="off")
    lab.natctl("apply", "--config", path, expect=0)
    lab.egress.udp_connect((SERVER, 53), src=(SOFT, 7)).send(b"natctl")
    assert lab.natctl("status", "--json", "--config", path, expect=0).json()["flows_outside"] == 1


def test_drift_is_told(lab: Lab) -> None:
    path = lab.config()
    lines = lab.natctl("status", "--config", path, expect=3).stdout
    assert "drift +table inet natctl\n" in lines
    lab.natctl("apply", "--config", path, expect=0)
    lab.egress.nft("add element inet natctl soft4 { 192.0.2.1 }")
    told = lab.natctl("status", "--json", "--config", path, expect=3).json()
    assert told["drift"] == ["-soft4: 192.0.2.1"]


def test_on_a_terminal_it_is_tables(lab: Lab) -> None:
    path = lab.config()
    lab.natctl("apply", "--config", path, expect=0)
    lab.server.tcp_server(443)
    lab.client.tcp_connect((SERVER, 443))
    near, far = pty.openpty()
    command = [sys.executable, "-m", "nat_rewriter", "status", "--config", str(path)]
    environment = {**os.environ, "COLUMNS": "100"}
    with lab.egress.enter(), subprocess.Popen(command, stdout=far, stderr=far, env=environment) as process:
        os.close(far)
        shown = b""
        while piece := _read(near):
            shown += piece
    os.close(near)
    assert process.returncode == 0, shown
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())
    assert re.search(rf"^tcp {SERVER}:443 +ams-1 +1 of 10 +9 +9 +█", text, re.MULTILINE), text
    assert "The live table is what the configuration says." in text


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # EIO: the other end is closed
        return b""
