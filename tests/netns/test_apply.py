"""``diff``, ``apply`` and ``remove`` as an operator types them, on the egress host of a lab."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nat_rewriter.kernel.lock import table_lock
from netns_lab import Lab

SO_SNDBUFFORCE = 32
FOREIGN = """
table ip foreign {
	set seen {
		type ipv4_addr
		flags dynamic,timeout
		timeout 1h
		elements = { 192.0.2.1, 192.0.2.2 }
	}
	chain postrouting {
		type nat hook postrouting priority 110; policy accept;
		ip saddr 192.0.2.0/24 masquerade
	}
}
table inet natctl_other {
	chain forward {
		type filter hook forward priority 0; policy accept;
		counter
	}
}
"""
DNAT = """
[[dnat]]
name = "inbound"
slice = "ams-1"
ports = ["9000-9004"]
to = "10.0.0.2"
"""


def listing(lab: Lab) -> str:
    return lab.egress.run(["nft", "-s", "list", "ruleset"]).stdout


def unordered(text: str) -> list[str]:
    """Return the words of a listing: nft lists elements in the order they came."""
    return sorted(text.replace(",", "").split())


def applied(lab: Lab, **options: str) -> Path:
    path = lab.config(**options)
    lab.natctl("apply", "--config", path, expect=0)
    return path


def test_the_first_apply_creates_and_the_second_is_up_to_date(lab: Lab) -> None:
    path = lab.config()
    assert lab.natctl("diff", "--config", path, expect=3).stdout.endswith("\n+table inet natctl\n")
    assert listing(lab) == ""
    first = lab.natctl("apply", "--config", path, expect=0)
    assert re.fullmatch(r"table inet natctl: created: \d+ elements added, 0 removed\n", first.stdout)
    before = listing(lab)
    assert lab.natctl("apply", "--config", path, expect=0).stdout == "table inet natctl: up to date\n"
    assert lab.natctl("diff", "--config", path, expect=0).stdout == ""
    assert listing(lab) == before


def test_a_dry_run_prints_what_an_apply_would_send_and_sends_nothing(lab: Lab) -> None:
    path = lab.config()
    text = lab.natctl("apply", "--dry-run", "--config", path, expect=0).stdout
    assert listing(lab) == ""
    lab.egress.nft(text)
    assert lab.natctl("apply", "--dry-run", "--config", path, expect=0).stdout == ""
    assert lab.natctl("diff", "--config", path).exit_code == 0


def test_what_render_prints_can_be_loaded_by_nft(lab: Lab) -> None:
    path = lab.config(extra=DNAT)
    lab.egress.nft(lab.natctl("render", "--config", path, expect=0).stdout)
    lab.natctl("diff", "--config", path, expect=0)


def test_the_configuration_can_come_from_standard_input(lab: Lab) -> None:
    text = lab.config().read_text()
    lab.natctl("apply", "--config", "-", input=text, expect=0)
    lab.natctl("diff", "--config", "-", input=text, expect=0)


def test_other_tables_are_left_alone(lab: Lab) -> None:
    lab.egress.nft(FOREIGN)
    before = listing(lab)
    path = applied(lab)
    assert listing(lab).startswith(before)
    lab.natctl("apply", "--config", lab.config(coexist="off", guard="count"), expect=0)
    assert listing(lab).startswith(before)
    lab.natctl("remove", "--config", path, expect=0)
    assert listing(lab) == before


def test_removing_leaves_nothing(lab: Lab) -> None:
    path = applied(lab)
    assert lab.natctl("remove", "--config", path, expect=0).stdout == "table inet natctl: removed\n"
    assert listing(lab) == ""
    assert lab.natctl("remove", "--config", path, expect=0).stdout == "table inet natctl: was not there\n"


def test_a_namespace_can_be_named_or_given_as_a_path(lab: Lab) -> None:
    path = lab.config()
    for namespace in (lab.egress.name, f"/run/netns/{lab.egress.name}"):
        command = [sys.executable, "-m", "nat_rewriter", "apply", "--netns", namespace, "--config", str(path)]
        lab.client.run(command)
        assert "table inet natctl" in listing(lab)
        assert lab.client.run(["nft", "list", "ruleset"]).stdout == ""
        lab.client.run([*command[:3], "remove", *command[4:]])
        assert listing(lab) == ""


# What an operator, or another program, might do to the table, and a line of `natctl diff` that tells it.
TAMPERING = {
    "a rule more": ("add rule inet natctl guard accept", r"^-\t\taccept$"),
    "a rule first": ("insert rule inet natctl srcnat counter accept", r"^-\t\tcounter"),
    "a rule less": ("flush chain inet natctl srcnat", r"^\+\t\t.*meta l4proto .* snat"),
    "a chain more": ("add chain inet natctl mine", r"^-\tchain mine"),
    "a set more": ("add set inet natctl mine { type ipv4_addr; }", r"^-\tset mine"),
    "an element more": ("add element inet natctl soft4 { 192.0.2.1 }", r"^-soft4: 192\.0\.2\.1$"),
    "an element less": ("delete element inet natctl soft4 { 198.51.100.10 }", r"^\+soft4: 198\.51\.100\.10$"),
    "a range more": (
        "add element inet natctl owned4 { 198.51.100.10 . tcp . 1-100 }",
        r"^-owned4: 198\.51\.100\.10 \. tcp \. 1-100$",
    ),
    "a set emptied": ("flush set inet natctl owned6_8", r"^\+owned6_8: 9000 \. 2001:db8:100::10$"),
    "a map changed": (
        "delete element inet natctl dnat4 { 198.51.100.10 . tcp . 9000-9004 }\n"
        "add element inet natctl dnat4 { 198.51.100.10 . tcp . 9000-9004 : 10.0.0.9 }",
        r"^\+dnat4: 198\.51\.100\.10 \. tcp \. 9000-9004 : 10\.0\.0\.2$",
    ),
    "all rules gone": ("flush table inet natctl", r"^\+\t\tmeta l4proto"),
    "the table gone": ("delete table inet natctl", r"^\+table inet natctl$"),
    "the table dormant": ("add table inet natctl { flags dormant; }", r"^-\tflags dormant"),
    "another policy": (
        "add chain inet natctl guard { type filter hook postrouting priority 300; policy drop; }",
        r"^-.*policy drop",
    ),
}


@pytest.mark.parametrize(("command", "told"), TAMPERING.values(), ids=TAMPERING)
def test_drift_is_found_told_and_mended(command: str, told: str, lab: Lab) -> None:
    path = applied(lab, extra=DNAT)
    before = listing(lab)
    lab.egress.nft(command)
    assert listing(lab) != before
    found = lab.natctl("diff", "--config", path, expect=3)
    assert re.search(told, found.stdout, re.MULTILINE), found.stdout
    assert lab.natctl("diff", "-q", "--config", path, expect=3).stdout == ""
    assert lab.natctl("diff", "--json", "--config", path, expect=3).json()["action"] in ("create", "rebuild", "update")
    lab.natctl("apply", "--config", path, expect=0)
    assert unordered(listing(lab)) == unordered(before)


def test_a_change_of_the_configuration_is_shown_as_json(lab: Lab) -> None:
    applied(lab, extra=DNAT)
    other = lab.config(extra=DNAT.replace("10.0.0.2", "10.0.0.3"))
    found = lab.natctl("diff", "--json", "--config", other, expect=3).json()
    keys = [f"198.51.100.10 . {protocol} . 9000-9004" for protocol in ("tcp", "udp")]
    (rule,) = found["rules"].pop("changed")
    assert (rule["kind"], rule["name"], rule.pop("flows")) == ("dnat", "inbound", 0)
    assert found == {
        "table": "natctl",
        "action": "update",
        "settings": {},
        "slices": {"added": [], "changed": [], "withdrawn": []},
        "rules": {"added": [], "withdrawn": []},
        "lines": [],
        "foreign": [],
        "sets": {"dnat4": {"added": dict.fromkeys(keys, "10.0.0.3"), "removed": dict.fromkeys(keys, "10.0.0.2")}},
    }
    done = lab.natctl("apply", "--json", "--config", other, expect=0).json()
    assert done["rules"].pop("changed") == [rule]  # nobody has counted flows here
    assert done == found
    assert lab.natctl("diff", "--json", "--config", other, expect=0).json()["action"] == "none"


def test_flows_keep_their_ports_when_the_table_is_rebuilt(lab: Lab) -> None:
    applied(lab, guard="drop")
    server = lab.server.tcp_server(443)
    held = lab.client.tcp_connect(("203.0.113.1", 443))
    assert "rebuilt" in lab.natctl("apply", "--config", lab.config(guard="count"), expect=0).stdout
    held.sendall(b"still here")
    assert held.recv(64) == b"still here"
    assert len(server.peers) == 1
    assert lab.leaks().total == 0


def test_an_apply_while_another_holds_the_lock_says_who(lab: Lab) -> None:
    path = lab.config()
    script = (
        "import sys\nfrom nat_rewriter.kernel.lock import table_lock\n"
        "with table_lock('natctl'):\n print('held', flush=True)\n sys.stdin.read()"
    )
    holder = lab.egress.popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    for verb in ("apply", "remove"):
        refused = lab.natctl(verb, "--config", path, expect=1)
        assert refused.stderr == f"natctl: lock table: held by process {holder.pid}: 'natctl'\n"
    assert listing(lab) == ""
    lab.natctl("diff", "--config", path, expect=3)  # reading needs no lock
    holder.kill()
    holder.wait()
    lab.natctl("apply", "--config", path, expect=0)


def test_locks_of_other_tables_and_namespaces_do_not_matter(lab: Lab) -> None:
    with lab.egress.enter(), table_lock("another"):
        lab.natctl("apply", "--config", lab.config(), expect=0)
    with lab.client.enter(), table_lock("natctl"):
        lab.natctl("remove", "--config", lab.config(), expect=0)


def port_set(offset: int) -> str:
    """Return a configuration with a port set of 2**offset - 1 ranges."""
    return f"""
        version = 1
        [[slice]]
        name = "map-e"
        address = "198.51.100.10"
        psid = {{ offset = {offset}, length = 4, id = 5 }}
        [[snat]]
        name = "clients"
        iifname = "fish0"
        slices = ["map-e"]
        """


def largest_message(lab: Lab) -> int:
    """Return how large a netlink message may be here, in bytes as the kernel counts them."""
    with lab.egress.open_socket(socket.SOCK_DGRAM) as sock:
        for option in (socket.SO_SNDBUF, SO_SNDBUFFORCE):
            with contextlib.suppress(PermissionError):
                sock.setsockopt(socket.SOL_SOCKET, option, 1 << 30)
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


def test_a_slice_of_many_ranges(lab: Lab) -> None:
    """A port set of 255 ranges: all of it is applied, and a second apply is empty."""
    lab.natctl("apply", "--config", "-", input=port_set(8), expect=0)
    lab.natctl("diff", "--config", "-", input=port_set(8), expect=0)
    table = json.loads(lab.egress.run(["nft", "-j", "list", "set", "inet", "natctl", "owned4_8"]).stdout)
    (owned,) = [entry["set"] for entry in table["nftables"] if "set" in entry]
    assert len(owned["elem"]) == 2 * 255


def test_a_transaction_larger_than_the_usual_socket_buffer(lab: Lab) -> None:
    """4095 ranges: where the buffer may not be as large, the limit is named and nothing is changed."""
    if largest_message(lab) >= 4 << 20:
        lab.natctl("apply", "--config", "-", input=port_set(12), expect=0)
        lab.natctl("diff", "--config", "-", input=port_set(12), expect=0)
        return
    assert "net.core.wmem_max" in lab.natctl("apply", "--config", "-", input=port_set(12), expect=4).stderr
    assert listing(lab) == ""
