"""A rule over pools of which this host holds nothing: nothing leaves by it until there is a slice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from netns_lab import Lab
from netns_lab.host import round_trip

SERVER, SOFT, CLIENT = "203.0.113.1", "198.51.100.10", "10.0.0.2"
CONFIG = """version = 1
[[pool]]
name = "fleet"
addresses = ["198.51.100.10"]
slice_size = 256
[[snat]]
name = "clients"
oifname = ["up0"]
pools = ["fleet"]
"""
HELD = f"""[[slice]]
name = "held"
address = "{SOFT}"
ports = ["9216-9471"]
protocols = ["tcp", "udp"]
"""


@pytest.fixture
def waiting(lab_factory: Callable[..., Lab]) -> Lab:
    lab = lab_factory(slices=[f"{SOFT}:9216-10239"])
    lab.server.tcp_server(443)
    lab.server.udp_server(53)
    lab.natctl("apply", "-q", "--config", lab.config_file(CONFIG), expect=0)
    return lab


def test_a_flow_that_began_without_a_slice_goes_on_with_one(waiting: Lab) -> None:
    datagrams = waiting.client.udp_connect((SERVER, 53), timeout_s=0.3)
    assert not round_trip(datagrams)
    config = waiting.config_file(CONFIG + HELD)
    flows = waiting.natctl("flows", "--json", "--config", config, expect=0).lines()
    assert not any(flow["original"]["src"] == CLIENT for flow in flows)
    waiting.natctl("apply", "-q", "--config", config, expect=0)
    assert round_trip(datagrams)


def test_what_the_host_sends_itself_does_not_wait(waiting: Lab) -> None:
    assert round_trip(waiting.egress.tcp_connect((SERVER, 443)))


def test_explain_tells_of_the_wait(waiting: Lab) -> None:
    told = waiting.natctl(
        "explain", "tcp", f"{CLIENT}:40000", f"{SERVER}:443", "--json", "--config", waiting.config_file(CONFIG)
    ).lines()
    assert "no slice of its pools is held: dropped" in str(told)
