"""``apply --sysctls``: what natctl needs is set, what was there stays, and ``remove`` gives back exactly that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from operating import listing

from nat_rewriter.kernel.sysctls import read_sysctl, write_sysctl
from netns_lab import Lab

RESERVED = "net.ipv4.ip_local_reserved_ports"
FORWARD4, FORWARD6 = "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"


@pytest.fixture(autouse=True)
def _own_state(state: Path) -> None:
    """Keep what was set for this test alone."""


def read(lab: Lab, name: str) -> str | None:
    with lab.egress.enter():
        return read_sysctl(name)


def write(lab: Lab, name: str, value: str) -> None:
    with lab.egress.enter():
        write_sysctl(name, value)


@pytest.mark.parametrize("before", ["", "8080", "7000-7009,9005,65535", "9000-9009"])
def test_ports_of_slices_are_reserved_and_given_back(before: str, lab: Lab) -> None:
    write(lab, RESERVED, before)
    path = lab.config()
    done = lab.natctl("apply", "--sysctls", "--config", path, expect=0)
    reserved = {"": "9000-9009", "8080": "8080,9000-9009"}.get(before, before)
    reserved = reserved.replace("9005,", "9000-9009,")
    assert read(lab, RESERVED) == reserved
    assert (RESERVED in done.stderr) is (reserved != before)
    lab.natctl("apply", "--sysctls", "--config", path, expect=0)  # the second time changes nothing
    assert read(lab, RESERVED) == reserved
    lab.natctl("remove", "--config", path, expect=0)
    assert read(lab, RESERVED) == before
    assert listing(lab) == ""


def test_reserved_ports_are_given_to_no_socket_that_asks_for_none(lab: Lab) -> None:
    lab.egress.sysctl("net.ipv4.ip_local_port_range", "9000 9019")
    lab.natctl("apply", "--sysctls", "--config", lab.config(), expect=0)
    lab.server.tcp_server(443)
    ports = {lab.egress.tcp_connect(("203.0.113.1", 443)).getsockname()[1] for _ in range(10)}
    assert ports == set(range(9010, 9020))
    with pytest.raises(OSError, match="Cannot assign requested address"):
        lab.egress.tcp_connect(("203.0.113.1", 443))


def test_without_the_option_nothing_is_set(lab: Lab) -> None:
    lab.natctl("apply", "--config", lab.config(), expect=0)
    assert read(lab, RESERVED) == ""


def test_forwarding_is_switched_on_and_given_back(lab: Lab) -> None:
    for name in (FORWARD4, FORWARD6):
        write(lab, name, "0")
    path = lab.config()
    done = lab.natctl("apply", "--sysctls", "--config", path, expect=0)
    assert f"{FORWARD4} = 1 (before: 0)" in done.stderr
    assert (read(lab, FORWARD4), read(lab, FORWARD6)) == ("1", "1")
    lab.natctl("apply", "--sysctls", "--config", path, expect=0)
    lab.natctl("remove", "--config", path, expect=0)
    assert (read(lab, FORWARD4), read(lab, FORWARD6)) == ("0", "0")


def test_forwarding_that_was_on_stays_on(lab: Lab) -> None:
    path = lab.config()
    lab.natctl("apply", "--sysctls", "--config", path, expect=0)
    lab.natctl("remove", "--config", path, expect=0)
    assert (read(lab, FORWARD4), read(lab, FORWARD6)) == ("1", "1")


def test_a_family_without_rules_is_left_alone(lab_factory: Callable[..., Lab]) -> None:
    lab = lab_factory(slices=["198.51.100.10:9000-9009"])
    write(lab, FORWARD6, "0")
    lab.natctl("apply", "--sysctls", "--config", lab.config(), expect=0)
    assert read(lab, FORWARD6) == "0"


def test_ports_follow_the_slices(lab_factory: Callable[..., Lab]) -> None:
    lab = lab_factory(slices=["198.51.100.10:9000-9009"])
    write(lab, RESERVED, "8080")
    path = lab.config()
    lab.natctl("apply", "--sysctls", "--config", path, expect=0)
    path.write_text(path.read_text().replace("9000-9009", "9100-9109"))
    lab.natctl("apply", "--sysctls", "--config", path, expect=0)
    assert read(lab, RESERVED) == "8080,9100-9109"
    # An operator adds a port of their own: it stays, through changes and at the end.
    write(lab, RESERVED, "8080,8443,9100-9109")
    path.write_text(path.read_text().replace("9100-9109", "9200-9209"))
    lab.natctl("apply", "--sysctls", "--config", path, expect=0)
    assert read(lab, RESERVED) == "8080,8443,9200-9209"
    lab.natctl("remove", "--config", path, expect=0)
    assert read(lab, RESERVED) == "8080,8443"


def test_ports_for_sockets_are_not_reserved(lab: Lab) -> None:
    path = lab.config(coexist="split")
    path.write_text(path.read_text().replace("protocols =", 'socket_ports = ["9008-9009"]\nprotocols ='))
    lab.natctl("apply", "--sysctls", "--config", path, expect=0)
    assert read(lab, RESERVED) == "9000-9007"


def test_what_somebody_changed_since_is_left_alone(lab: Lab) -> None:
    path = lab.config()
    lab.natctl("apply", "--sysctls", "--config", path, expect=0)
    write(lab, RESERVED, "1234")
    done = lab.natctl("remove", "--config", path, expect=0)
    assert done.stderr == f"natctl: warning: {RESERVED} was changed since natctl set it, and is left as it is\n"
    assert read(lab, RESERVED) == "1234"
    assert lab.natctl("remove", "--config", path, expect=0).stderr == ""  # it is natctl's no more


def test_thousands_of_ranges_are_reserved_and_given_back(lab: Lab) -> None:
    """The kernel takes and gives such a list in pieces of a page."""
    config = (
        'version = 1\n[[slice]]\nname = "map-e"\naddress = "198.51.100.10"\n'
        "psid = { offset = 12, length = 3, id = 5 }\n"
    )
    write(lab, RESERVED, "80")
    lab.natctl("apply", "--sysctls", "--config", "-", input=config, expect=0)
    expected = ["80", *(f"{first}-{first + 1}" for first in range(16 + 10, 65536, 16))]
    assert sorted(str(read(lab, RESERVED)).split(",")) == sorted(expected)
    lab.natctl("remove", "--config", "-", input=config, expect=0)
    assert read(lab, RESERVED) == "80"


def test_where_the_value_before_cannot_be_kept_nothing_is_set(lab: Lab, state: Path) -> None:
    state.write_text("a file where the directory should be")
    done = lab.natctl("apply", "--sysctls", "--config", lab.config(), expect=1)
    assert "write state: Not a directory" in done.stderr
    assert read(lab, RESERVED) == ""


def test_a_record_that_is_damaged_is_told(lab: Lab, state: Path) -> None:
    path = lab.config()
    lab.natctl("apply", "--sysctls", "--config", path, expect=0)
    (kept,) = state.rglob("sysctls.json")
    kept.write_text("{")
    assert "is damaged" in lab.natctl("remove", "--config", path, expect=1).stderr


@pytest.mark.parametrize("other", [["--dry-run"], ["--confirmed"], ["--confirm", "5"]])
def test_options_that_do_not_go_together(other: list[str], lab: Lab) -> None:
    done = lab.natctl("apply", "--sysctls", *other, "--config", lab.config(), expect=2)
    assert f"{other[0]} and --sysctls do not go together" in done.stderr
