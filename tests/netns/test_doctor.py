"""``natctl doctor`` on hosts with and without what natctl needs; every remedy it names is tried."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nat_rewriter.controller.checkup import verdict
from nat_rewriter.controller.conntrack_checks import check_table_size
from nat_rewriter.controller.nat_order import USUAL, earlier_chains
from nat_rewriter.kernel import features
from nat_rewriter.kernel.feature_worker import NFT_FORMS
from nat_rewriter.kernel.nft_chains import BaseChain, list_base_chains
from nat_rewriter.model.checkup import Answer, Check, Weight
from nat_rewriter.model.policy import Controller, Policy
from netns_lab import Lab

LabFactory = Callable[..., Lab]
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "doctor.md"
INSTALLED = Path(__file__).parents[2] / "packaging" / "natctl.toml"


def doctor(lab: Lab, *words: str | Path, expect: int | None = None) -> dict[str, Any]:
    """Return what doctor says of the egress host: name, or name and subject -> object."""
    lines = lab.natctl("doctor", "--json", *words, expect=expect).lines()
    return {" ".join(filter(None, (line["name"], line.get("subject")))): line for line in lines}


def snapshot(lab: Lab) -> list[str]:
    """Return what doctor must not change: ruleset, flows, sysctls and sockets of the egress host."""
    commands = ("nft -s list ruleset", "sysctl -a -r ^net.(ipv4|ipv6|netfilter)", "ss -tuan", "ip address", "ip rule")
    volatile = ("nf_conntrack_count", "route.flush", "stable_secret", "random", "mtu_expires", "tcp_fastopen_key")
    shown = (lab.egress.run(command.split(), check=False).stdout for command in commands)
    return [line for text in shown for line in text.splitlines() if not any(word in line for word in volatile)]


def test_a_host_that_has_everything(lab: Lab) -> None:
    told = doctor(lab, "--config", lab.config(), expect=0)
    assert {name for name, check in told.items() if check["weight"] == "required"} >= {
        "nf-tables",
        "ctnetlink",
        "ruleset",
    }
    assert all(check["answer"] == "yes" for check in told.values() if check["weight"] != "optional"), told
    assert set(features.FEATURES) | set(features.CAPABILITIES) <= set(told)
    assert told["socket-address 198.51.100.10"]["answer"] == "yes"


def test_every_name_is_in_the_documentation(lab: Lab) -> None:
    text = lab.config().read_text().replace('"confine"', '"split"')
    lines = lab.natctl("doctor", "--json", "--config", "-", input=text, expect=0).lines()
    rows = [line for line in DOCUMENTATION.read_text().splitlines() if line.startswith("| `")]
    documented = {name: row for row in rows for name in re.findall(r"`([\w-]+)`", row.split("|")[1])}
    elsewhere = {"route", "route-sockets", "pool-store"}  # told where there is [route], or [store]
    assert {line["name"] for line in lines} | elsewhere == documented.keys() - {"required", "recommended", "optional"}
    for line in lines:
        assert line["weight"] in documented[line["name"]].split("|")[2]


def test_every_nft_form_is_a_feature_and_loads(lab: Lab) -> None:
    assert set(NFT_FORMS) < set(features.FEATURES)
    for text in NFT_FORMS.values():
        lab.egress.nft(f"table inet probe {{\n{text}\n}}\n")
        lab.egress.nft("delete table inet probe")


def test_looking_changes_nothing(lab: Lab) -> None:
    lab.natctl("apply", "--config", lab.config(), expect=0)
    before = snapshot(lab)
    assert len(before) > 100
    doctor(lab, "--config", lab.config())
    assert snapshot(lab) == before


def test_without_a_configuration_what_needs_slices_is_left_out(lab: Lab) -> None:
    if Path("/etc/natctl/natctl.toml").exists():
        pytest.skip("this host has a configuration")
    told = lab.natctl("doctor", expect=0)
    assert "No configuration at /etc/natctl/natctl.toml" in told.stderr
    assert "ephemeral-ports" not in told.stdout
    assert "nf-tables: loads" in told.stdout


def test_with_the_configuration_as_it_is_installed_the_host_is_looked_at(lab: Lab) -> None:
    told = lab.natctl("doctor", "--config", INSTALLED, expect=0)
    assert f"No slices in {INSTALLED} yet" in told.stderr
    assert "ephemeral-ports" not in told.stdout
    assert "nf-tables: loads" in told.stdout
    for command in ("render", "diff", "apply", "check", "status", "watch"):
        refused = lab.natctl(command, "--config", INSTALLED, expect=2).stderr
        assert refused.startswith(f"natctl: {INSTALLED}: slice: missing: expected at least one [[slice]]"), command


def test_what_is_wrong_with_a_configuration_without_slices_is_told(lab: Lab) -> None:
    text = f'{INSTALLED.read_text()}\n[[snat]]\nname = "clients"\nslices = ["ams-1"]\n'
    told = lab.natctl("doctor", "--config", "-", input=text, expect=2).stderr
    assert 'slices[0]: "ams-1": expected the name of a [[slice]]' in told


def test_a_configuration_that_was_named_has_to_be_there(lab: Lab, tmp_path: Path) -> None:
    assert str(tmp_path) in lab.natctl("doctor", "--config", tmp_path / "none.toml", expect=2).stderr


# What is wrong -> the check that finds it, on the egress host of a lab.
SPOILT = {
    "no forwarding": ("sysctl -w net.ipv4.ip_forward=0", "ipv4-forwarding", 3),
    "no forwarding of IPv6": ("sysctl -w net.ipv6.conf.all.forwarding=0", "ipv6-forwarding", 3),
    "ephemeral ports in a slice": ("sysctl -w net.ipv4.ip_local_port_range='9005 20000'", "ephemeral-ports", 3),
    "long timeouts": ("sysctl -w net.netfilter.nf_conntrack_tcp_timeout_established=432000", "conntrack-timeouts", 0),
    "no events": ("sysctl -w net.netfilter.nf_conntrack_events=0", "conntrack-events-sent", 3),
    "no events of old flows": ("sysctl -w net.netfilter.nf_conntrack_events=2", "conntrack-events-of-all", 0),
    "no counters": ("sysctl -w net.netfilter.nf_conntrack_acct=0", "conntrack-accounting", 0),
    "no times": ("sysctl -w net.netfilter.nf_conntrack_timestamp=0", "conntrack-timestamps", 0),
    "early demux": ("sysctl -w net.ipv4.tcp_early_demux=1", "tcp-early-demux-off", 0),
    "no address": ("ip address del 198.51.100.10/32 dev lo", "socket-address 198.51.100.10", 0),
}


@pytest.mark.parametrize(("spoil", "name", "code"), SPOILT.values(), ids=SPOILT)
def test_what_is_wrong_is_told_and_the_remedy_mends_it(spoil: str, name: str, code: int, lab: Lab) -> None:
    lab.egress.run(["sh", "-c", spoil])
    found = doctor(lab, "--config", lab.config(), expect=code)[name]
    assert found["answer"] == "no"
    lab.egress.run(["sh", "-c", found["remedy"]])
    assert doctor(lab, "--config", lab.config(), expect=0)[name]["answer"] == "yes"


@pytest.mark.parametrize("inside", ["ip netns exec {}", "nsenter --net=/run/netns/{}"])
def test_a_remedy_is_for_the_namespace_that_was_looked_at(inside: str, lab: Lab) -> None:
    lab.egress.sysctl("net.ipv4.ip_forward", "0")
    words = inside.format(lab.egress.name)
    netns = words.split()[-1].removeprefix("--net=")
    command = [sys.executable, "-m", "nat_rewriter", "doctor", "--json", "--netns", netns]
    done = subprocess.run([*command, "--config", lab.config()], capture_output=True, text=True, check=False)
    found = {check["name"]: check for check in map(json.loads, done.stdout.splitlines())}["ipv4-forwarding"]
    assert found["remedy"] == f"{words} sysctl -w net.ipv4.ip_forward=1"
    subprocess.run(["sh", "-c", found["remedy"]], check=True)
    assert lab.egress.run(["sysctl", "-n", "net.ipv4.ip_forward"]).stdout == "1\n"


def test_ports_that_are_reserved_already_stay_reserved(lab: Lab) -> None:
    lab.egress.run(["sysctl", "-w", "net.ipv4.ip_local_port_range=9005 20000"])
    lab.egress.run(["sysctl", "-w", "net.ipv4.ip_local_reserved_ports=8080,9000-9006"])
    remedy = doctor(lab, "--config", lab.config(), expect=3)["ephemeral-ports"]["remedy"]
    assert remedy == "sysctl -w net.ipv4.ip_local_reserved_ports=8080,9000-9009"


def test_a_table_that_rewrites_first(lab: Lab) -> None:
    chain = "table ip docker { chain POSTROUTING { type nat hook postrouting priority %d; masquerade; }\n}"
    lab.egress.nft(chain % 90)
    found = doctor(lab, "--config", lab.config(), expect=3)["first-to-rewrite"]
    assert "table ip docker chain POSTROUTING (postrouting, 90)" in found["found"]
    assert found["remedy"].startswith("srcnat_priority = 89 ")
    lab.egress.nft("delete table ip docker")
    lab.egress.nft(chain % 110)
    assert doctor(lab, "--config", lab.config(), expect=0)["first-to-rewrite"]["answer"] == "yes"


def test_a_table_that_rewrites_destinations_first(lab: Lab, tmp_path: Path) -> None:
    """It matters where there are [[dnat]] rules, and where it has rules itself."""
    path = tmp_path / "with-dnat.toml"
    path.write_text(lab.config().read_text() + '\n[[dnat]]\nname = "in"\nslice = "ams-1"\nto = "10.0.0.2"\n')
    lab.egress.nft("table ip docker { chain PREROUTING { type nat hook prerouting priority -100; }\n}")
    assert doctor(lab, "--config", path, expect=0)["first-to-rewrite"]["answer"] == "yes"
    lab.egress.nft("add rule ip docker PREROUTING tcp dport 9001 dnat to 10.0.0.3")
    lab.egress.nft("table ip docker { chain POSTROUTING { type nat hook postrouting priority 90; masquerade; }\n}")
    found = doctor(lab, "--config", path, expect=3)["first-to-rewrite"]
    mend = re.fullmatch(
        r"(srcnat_priority = 89) and (dstnat_priority = -101) in \[controller\], or .*", found["remedy"]
    )
    assert mend, found
    path.write_text(path.read_text().replace("[controller]\n", "[controller]\n" + "\n".join(mend.groups()) + "\n"))
    assert doctor(lab, "--config", path, expect=0)["first-to-rewrite"]["answer"] == "yes"
    lab.natctl("apply", "--config", path, expect=0)
    # Of chains of one priority the one that came last is called first: natctl's would come too late by its usual one.
    lab.egress.nft("delete table ip docker")
    lab.egress.nft(
        "table ip docker { chain PREROUTING { type nat hook prerouting priority -100; dnat to 10.0.0.3; }\n}"
    )
    lab.server.run(["bash", "-c", "echo to >/dev/udp/198.51.100.10/9001"])
    (flow,) = lab.natctl("flows", "--json", "--protocol", "udp", "--config", path, expect=0).lines()
    assert flow["reply"]["src"] == "10.0.0.2"


@pytest.mark.parametrize(
    ("ports", "given", "mend"),
    [
        (["9000-9009", "9100-9109"], "9000 20000", "sysctl -w net.ipv4.ip_local_reserved_ports=9000-9009,9100-9109"),
        (["9000-19999"], "9000 20000", 'sysctl -w net.ipv4.ip_local_port_range="20000 65535"'),
        (["1024-65000"], "9000 20000", "bind the sockets of this host to other addresses: "),
    ],
)
def test_one_command_keeps_sockets_and_all_slices_apart(
    ports: list[str], given: str, mend: str, lab_factory: LabFactory
) -> None:
    """And never takes all ports from the sockets of the host: apply --sysctls does the same."""
    lab = lab_factory(slices=[f"198.51.100.10:{','.join(ports)}"])
    text = lab.config().read_text()
    lab.egress.sysctl("net.ipv4.ip_local_port_range", given)
    remedy = doctor(lab, "--config", lab.config(), expect=3)["ephemeral-ports"]["remedy"]
    assert remedy.startswith(mend), text
    done = lab.natctl("apply", "--sysctls", "--config", lab.config(), expect=0)
    assert ("warning: net.ipv4.ip_local_reserved_ports is left as it is" in done.stderr) is remedy.startswith("bind")
    assert (doctor(lab, "--config", lab.config())["ephemeral-ports"]["answer"] == "yes") is remedy.startswith("sysctl")
    lab.server.tcp_server(443)
    lab.egress.tcp_connect(("203.0.113.1", 443))
    lab.natctl("remove", "--config", lab.config(), expect=0)
    kept = lab.egress.run(["sysctl", "-n", "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports"]).stdout
    assert kept.split() == given.split()
    if remedy.startswith("sysctl"):
        lab.egress.run(["sh", "-c", remedy])
        doctor(lab, "--config", lab.config(), expect=0)


def test_natctls_own_chains_are_no_others(lab: Lab) -> None:
    lab.natctl("apply", "--config", lab.config(), expect=0)
    with lab.egress.enter():
        chains = list_base_chains()
    assert "inet natctl srcnat" in map(str, chains)
    assert earlier_chains(chains, USUAL, "natctl") == []


@pytest.mark.parametrize(
    ("chain", "earlier"),
    [
        (BaseChain("ip", "nat", "POSTROUTING", "nat", "postrouting", 100), True),
        (BaseChain("ip", "nat", "POSTROUTING", "nat", "postrouting", 101), False),
        (BaseChain("ip", "nat", "PREROUTING", "nat", "prerouting", -100), True),
        (BaseChain("ip", "nat", "PREROUTING", "nat", "prerouting", -99), False),
        (BaseChain("inet", "fw", "post", "filter", "postrouting", 0), False),
        (BaseChain("ip", "nat", "PREROUTING", "nat", "prerouting", -100, rules=0), False),
        (BaseChain("ip", "nat", "OUTPUT", "nat", "output", -100), False),
        (BaseChain("inet", "natctl", "srcnat", "nat", "postrouting", 100), False),
        (BaseChain("ip", "natctl", "srcnat", "nat", "postrouting", 100), True),
    ],
)
def test_which_chains_come_first(chain: BaseChain, earlier: bool) -> None:
    assert bool(earlier_chains([chain], USUAL, "natctl")) == earlier


def test_a_socket_on_ports_for_rewriting(lab: Lab) -> None:
    text = lab.config().read_text().replace('"confine"', '"split"')
    text = text.replace('ports = ["9000-9009"]', 'ports = ["9000-9009"]\nsocket_ports = ["9009"]')
    assert json.loads(lab.natctl("doctor", "--json", "--config", "-", input=text, expect=0).stdout.splitlines()[-1])
    lab.egress.tcp_server(9004)
    lab.egress.tcp_server(9005)
    refused = lab.natctl("doctor", "--config", "-", input=text, expect=3)
    assert "To be mended: foreign-binds.\n" in refused.stderr
    found = [line for line in refused.stdout.splitlines() if line.startswith("no      recommended foreign-binds ams-1")]
    assert [str(port) in line for port, line in zip((9004, 9005), sorted(found), strict=True)] == [True, True]
    assert all(f"It is of process {os.getpid()} (" in line for line in found)


def without_capabilities(lab: Lab, *words: str | Path) -> subprocess.CompletedProcess[str]:
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    return lab.egress.run([*drop, sys.executable, "-m", "nat_rewriter", "doctor", *map(str, words)], check=False)


def test_without_privilege_it_still_tells(lab: Lab) -> None:
    path = lab.config()
    path.parent.chmod(0o755)
    path.chmod(0o644)
    done = without_capabilities(lab, "--config", path)
    assert done.returncode == 4, done.stderr
    assert done.stderr.startswith("natctl: doctor: cannot work here without: ")
    assert "CAP_NET_ADMIN" in done.stderr
    assert "Traceback" not in done.stderr
    assert "no      required    CAP_NET_ADMIN: this process does not have it | mend: " in done.stdout
    assert all(f"{name}: loads" in done.stdout for name in NFT_FORMS), done.stdout
    assert "unknown recommended first-to-rewrite: listing chains needs CAP_NET_ADMIN" in done.stdout
    quiet = without_capabilities(lab, "-q", "--config", path)
    assert (quiet.returncode, quiet.stdout) == (4, "")


def test_without_names_of_protocols_their_package_is_named(lab: Lab, tmp_path: Path) -> None:
    nothing = tmp_path / "protocols"
    nothing.touch()
    command = f'mount --bind "{nothing}" /etc/protocols && exec "$@"'
    natctl = [sys.executable, "-m", "nat_rewriter", "doctor", "--json", "--config", str(lab.config())]
    done = lab.egress.run(["unshare", "-m", "sh", "-c", command, "sh", *natctl], check=False)
    told = {check["name"]: check for check in map(json.loads, done.stdout.splitlines())}
    assert told["ipv6-nat"]["answer"] == "no"
    assert told["ipv6-nat"]["remedy"] == "apt install netbase"


def test_on_a_terminal_it_is_a_table(lab: Lab) -> None:
    near, far = pty.openpty()
    command = [sys.executable, "-m", "nat_rewriter", "doctor", "--config", str(lab.config())]
    lab.egress.run(["sysctl", "-w", "net.ipv4.ip_forward=0"])
    with lab.egress.enter(), subprocess.Popen(command, stdout=far, stderr=subprocess.DEVNULL) as process:
        os.close(far)
        shown = b""
        while piece := _read(near):
            shown += piece
    os.close(near)
    assert process.returncode == 3
    assert b"\x1b[" in shown
    assert b"sysctl -w net.ipv4.ip_forward=1" in shown


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # EIO: the other end is closed
        return b""


def test_what_could_not_be_tried_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    assert {check.answer for check in features.list_features()} == {Answer.UNKNOWN}
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert {check.answer for check in features.list_features()} == {Answer.UNKNOWN}


@pytest.mark.parametrize(
    ("answers", "worst"),
    [
        ([], None),
        ([(Answer.YES, Weight.REQUIRED)], None),
        ([(Answer.UNKNOWN, Weight.REQUIRED)], None),
        ([(Answer.NO, Weight.OPTIONAL)], None),
        ([(Answer.NO, Weight.RECOMMENDED), (Answer.NO, Weight.OPTIONAL)], Weight.RECOMMENDED),
        ([(Answer.NO, Weight.RECOMMENDED), (Answer.NO, Weight.REQUIRED)], Weight.REQUIRED),
    ],
)
def test_the_gravest_no_decides(answers: list[tuple[Answer, Weight]], worst: Weight | None) -> None:
    assert verdict(Check("x", answer, weight, "", "") for answer, weight in answers) is worst


@pytest.mark.parametrize(
    ("most", "now", "answer"),
    [("100", "0", "yes"), ("100", "95", "no"), (None, None, "unknown")],
)
def test_a_table_that_is_almost_full(
    most: str | None, now: str | None, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"net.netfilter.nf_conntrack_max": most, "net.netfilter.nf_conntrack_count": now}
    monkeypatch.setattr("nat_rewriter.controller.conntrack_checks.read_sysctl", values.get)
    assert check_table_size(Policy(Controller(), ())).answer.value == answer
