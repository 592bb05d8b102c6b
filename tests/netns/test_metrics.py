"""The metrics of a running watch: what the kernel says, under the names that the dashboard asks for."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.request
from pathlib import Path

import pytest
from watching import Watching, wait_looking

from netns_lab import Lab

SERVER, SOFT, CLIENT = "203.0.113.1", "198.51.100.10", "10.0.0.2"
WEB = (SERVER, 443)
DASHBOARD = Path(__file__, "../../../docs/grafana-natctl.json").resolve()


@pytest.fixture
def config(lab: Lab, state: Path) -> Path:
    lab.server.tcp_server(443)
    path = lab.config(coexist="off", guard="off")
    lab.natctl("apply", "--config", path, expect=0)
    return path


def scrape(lab: Lab, port: int = 9464) -> str:
    with lab.egress.enter(), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def value(metrics: str, name: str) -> float:
    return float(re.findall(rf"^{re.escape(name)} (\S+)$", metrics, re.MULTILINE)[0])


def test_a_watch_tells_what_it_and_the_kernel_count(lab: Lab, config: Path) -> None:
    watching = Watching(lab, config, "--json", "--metrics", "9464", "--abort")
    wait_looking(lab, watching)
    kept = [lab.client.tcp_connect(WEB) for _ in range(10)]
    watching.next("slice-exhausted")
    lab.client.tcp_start(WEB)  # finds no port
    lab.egress.tcp_start(WEB, src=(SOFT, 9003))
    watching.next_action("destroy-socket")
    metrics = scrape(lab)
    assert value(metrics, 'natctl_actions_total{action="destroy-socket",result="done"}') == 1
    assert value(metrics, 'natctl_findings{kind="slice-exhausted",severity="critical"}') == 1
    assert value(metrics, 'natctl_findings_opened_total{kind="ephemeral-overlap",severity="warning"}') == len(
        lab.slices
    )
    assert value(metrics, 'natctl_slice_used_ports{slice="ams-1"}') == 10
    assert value(metrics, 'natctl_slice_findable_ports{slice="ams-1"}') == 0
    assert value(metrics, 'natctl_slice_findable_ports{slice="ams-2"}') == 10
    assert value(metrics, "natctl_conntrack_max_entries") > value(metrics, "natctl_conntrack_entries") >= len(kept)
    assert watching.stop() == 0


def test_a_watch_that_keeps_a_history_counts_what_it_wrote(lab: Lab, config: Path, tmp_path: Path) -> None:
    watching = Watching(lab, config, "--json", "--metrics", "9464", "--record", str(tmp_path / "history"))
    wait_looking(lab, watching)
    kept = lab.client.tcp_connect(WEB)
    deadline = time.monotonic() + 30
    while not value(metrics := scrape(lab), "natctl_history_written_total"):
        assert time.monotonic() < deadline, metrics
        time.sleep(0.2)
    assert value(metrics, "natctl_history_lost_total") == value(metrics, "natctl_history_failing") == 0
    assert kept
    assert watching.stop() == 0


def test_cpu_counters_are_those_of_conntrack(lab: Lab, config: Path) -> None:
    watching = Watching(lab, config, "--json", "--metrics", "9464")
    wait_looking(lab, watching)
    kept = [lab.client.tcp_connect(WEB) for _ in range(10)]
    for _ in range(3):
        lab.client.tcp_start(WEB)
    listed = lab.egress.run(["conntrack", "-S"]).stdout
    metrics = scrape(lab)
    for cpu, counters in re.findall(r"^cpu=(\d+)\s+(.*)$", listed, re.MULTILINE):
        for name, number in re.findall(r"(\w+)=(\d+)", counters):
            name = {"chaintoolong": "chain_toolong"}.get(name, name)
            # SYNs are sent again meanwhile.
            assert value(metrics, f'natctl_conntrack_{name}_total{{cpu="{cpu}"}}') == pytest.approx(int(number), abs=5)
    assert sum(map(float, re.findall(r"^natctl_conntrack_insert_failed_total\S* (\S+)$", metrics, re.MULTILINE))) >= 3
    assert len(kept) == 10
    assert watching.stop() == 0


def test_every_metric_of_the_dashboard_has_a_value_and_a_description(lab: Lab, config: Path, tmp_path: Path) -> None:
    watching = Watching(lab, config, "--json", "--metrics", "9464", "--record", str(tmp_path / "history"))
    wait_looking(lab, watching)
    metrics = scrape(lab)
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {
        name
        for panel in panels
        for target in panel.get("targets", ())
        for name in re.findall(r"\bnatctl_\w+", target["expr"])
    }
    assert asked
    assert asked <= set(re.findall(r"^(natctl_\w+)[ {]", metrics, re.MULTILINE))
    described = dict(re.findall(r"^# HELP (\w+) (.+)$", metrics, re.MULTILINE))
    names = set(re.findall(r"^# TYPE (\w+) ", metrics, re.MULTILINE))
    assert names == set(described)
    assert all(name.startswith("natctl_") and text.endswith(".") for name, text in described.items())
    assert watching.stop() == 0


def test_metrics_are_for_this_host_unless_told_otherwise(lab: Lab, config: Path) -> None:
    watching = Watching(lab, config, "--json", "--metrics", "9464")
    wait_looking(lab, watching)
    assert scrape(lab)
    with pytest.raises(ConnectionRefusedError):
        lab.egress.tcp_connect(("10.0.0.1", 9464))
    assert watching.stop() == 0
    elsewhere = Watching(lab, config, "--json", "--metrics", "10.0.0.1:9464")
    wait_looking(lab, elsewhere)
    lab.egress.tcp_connect(("10.0.0.1", 9464)).close()
    with pytest.raises(ConnectionRefusedError), lab.egress.enter():
        socket.create_connection(("127.0.0.1", 9464), timeout=2)
    assert elsewhere.stop() == 0
