"""What a sound configuration means, and what is said about files that cannot be read at all."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from configurations import SMALLEST

from nat_rewriter.config import read_policy
from nat_rewriter.errors import ConfigError, Problem
from nat_rewriter.model.policy import Coexist, Controller, Guard, Policy, Spread, Timestamps
from nat_rewriter.model.slices import PortRange, Protocol

SNAT = """
[[snat]]
name = "warp"
slices = ["ams-1"]
"""


def read(text: str) -> Policy:
    return read_policy(text.encode(), "natctl.toml")


def problems_of(source: bytes | Path) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        read_policy(source)
    return caught.value.problems


def test_defaults_are_those_of_the_model() -> None:
    policy = read(SMALLEST)
    assert policy.controller == Controller("natctl", Coexist.CONFINE, Guard.DROP, 100)
    assert policy.slices[0].protocols == (Protocol.TCP, Protocol.UDP)
    assert policy.slices[0].socket_ranges == ()
    assert (policy.snat, policy.dnat) == ((), ())
    rule = read(SMALLEST + SNAT + "mark = 0\n").snat[0]
    assert (rule.mark, rule.spread, rule.timestamps) == (0, Spread.CLIENT, Timestamps.KEEP)
    assert rule.iifname == rule.oifname == rule.source == rule.destination == rule.exclude == rule.exclude_source == ()


def test_every_key_reaches_the_policy() -> None:
    policy = read(
        """
        version = 1
        [controller]
        table = "nat_1"
        coexist = "split"
        guard = "count"
        srcnat_priority = -5
        [[slice]]
        name = "ams-1"
        address = "198.51.100.10"
        ports = ["9005-9009", 9000, "9001-9004", "9100"]
        protocols = ["icmp", "tcp"]
        socket_ports = ["9008-9009"]
        [[snat]]
        name = "warp"
        iifname = ["fish0", "fish1"]
        oifname = "eth0"
        source = ["10.0.1.0/24", "10.0.0.0/24", "10.0.0.7"]
        destination = ["0.0.0.0/0"]
        mark = 0x10
        slices = ["ams-1"]
        spread = "random"
        exclude = ["192.0.2.0/24", "2001:db8::/32"]
        exclude_source = ["10.0.0.1"]
        timestamps = "strip"
        [[dnat]]
        name = "inbound"
        slice = "ams-1"
        ports = ["9000-9004"]
        to = "10.0.0.2:80"
        """
    )
    assert policy.controller == Controller("nat_1", Coexist.SPLIT, Guard.COUNT, -5)
    (owned,) = policy.slices
    assert owned.ranges == (PortRange(9000, 9009), PortRange(9100, 9100))
    assert owned.protocols == (Protocol.TCP, Protocol.ICMP)
    assert owned.socket_ranges == (PortRange(9008, 9009),)
    (snat,) = policy.snat
    assert (snat.name, snat.slices, snat.mark) == ("warp", (owned,), 16)
    assert (snat.iifname, snat.oifname) == (("fish0", "fish1"), ("eth0",))
    assert snat.source == (ip_network("10.0.0.0/23"),)
    assert snat.destination == (ip_network("0.0.0.0/0"),)
    assert snat.exclude == (ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"))
    assert snat.exclude_source == (ip_network("10.0.0.1/32"),)
    assert (snat.spread, snat.timestamps) == (Spread.RANDOM, Timestamps.STRIP)
    (dnat,) = policy.dnat
    assert (dnat.name, dnat.slice, dnat.ranges) == ("inbound", owned, (PortRange(9000, 9004),))
    assert (dnat.to, dnat.to_port) == (ip_address("10.0.0.2"), 80)


def test_a_dnat_rule_forwards_what_is_for_rewriting_unless_it_says_less() -> None:
    text = SMALLEST.replace("[[slice]]", '[controller]\ncoexist = "split"\n[[slice]]') + 'socket_ports = ["9004"]\n'
    (rule,) = read(text + '[[dnat]]\nname = "in"\nslice = "ams-1"\nto = "10.0.0.2"\n').dnat
    assert rule.ranges == (PortRange(9000, 9003), PortRange(9005, 9009))
    assert rule.to_port is None


def test_ipv6_from_end_to_end() -> None:
    policy = read(
        SMALLEST.replace("198.51.100.10", "2001:db8::a")
        + SNAT
        + 'source = ["2001:db8:1::/64"]\n[[dnat]]\nname = "in"\nslice = "ams-1"\nto = "[2001:db8:1::2]:8080"\n'
    )
    assert policy.slices[0].address == ip_address("2001:db8::a")
    assert policy.snat[0].source == (ip_network("2001:db8:1::/64"),)
    assert (policy.dnat[0].to, policy.dnat[0].to_port) == (ip_address("2001:db8:1::2"), 8080)


def test_slices_of_one_address_may_touch_and_may_differ_in_protocol() -> None:
    other = SMALLEST.replace("version = 1", "").replace("ams-1", "ams-2").replace("9000-9009", "9010-9019")
    icmp = SMALLEST.replace("version = 1", "").replace("ams-1", "echo") + 'protocols = ["icmp"]\n'
    assert [owned.name for owned in read(SMALLEST + other + icmp).slices] == ["ams-1", "ams-2", "echo"]


def test_a_port_set_with_offset_zero_never_has_port_zero() -> None:
    psid = "psid = { offset = 0, length = 4, id = 0 }"
    assert read(SMALLEST.replace('ports = ["9000-9009"]', psid)).slices[0].ranges == (PortRange(1, 4095),)


def test_a_port_set_without_id_bits_is_one_range() -> None:
    psid = "psid = { offset = 6, length = 0, id = 0 }"
    assert read(SMALLEST.replace('ports = ["9000-9009"]', psid)).slices[0].ranges == (PortRange(1024, 65535),)


def test_all_problems_are_reported_together() -> None:
    problems = problems_of(
        b"""
        versoin = 1
        [controller]
        coexist = "share"
        guard = "perhaps"
        [[slice]]
        name = "ams-1"
        address = "198.51.100.300"
        ports = ["9000-9009", "0", "70000", "9009-9000"]
        protocols = ["sctp"]
        [[slice]]
        name = "ams-2"
        address = "198.51.100.10"
        psid = { offset = 6, length = 8, id = 256 }
        [[snat]]
        name = "warp"
        slices = ["ams-1", "ams-3"]
        mark = -1
        [[dnat]]
        name = "inbound"
        slice = "ams-4"
        to = "there"
        """
    )
    assert [problem.path for problem in problems] == [
        "version",
        "controller.coexist",
        "controller.guard",
        'slice[0] "ams-1".address',
        'slice[0] "ams-1".protocols[0]',
        'slice[0] "ams-1".ports[1]',
        'slice[0] "ams-1".ports[2]',
        'slice[0] "ams-1".ports[3]',
        'slice[1] "ams-2".psid.id',
        'snat[0] "warp".slices[1]',
        'snat[0] "warp".mark',
        'dnat[0] "inbound".slice',
        'dnat[0] "inbound".to',
        "versoin",
    ]
    assert {problem.file for problem in problems} == {"<configuration>"}


def test_a_problem_is_one_line_that_names_file_path_value_and_form() -> None:
    (problem,) = problems_of(SMALLEST.replace("9000-9009", "9009-9000").encode())
    assert str(problem) == (
        '<configuration>: slice[0] "ams-1".ports[0]: "9009-9000": '
        'expected a range with its lower port first, e.g. "9000-9009"'
    )


def test_every_pair_of_overlapping_slices_that_starts_later_is_named() -> None:
    body = "".join(
        f'[[slice]]\nname = "s{n}"\naddress = "198.51.100.10"\nports = ["{n * 10 + 1}-{n * 10 + 11}"]\n'
        for n in range(5)
    )
    problems = problems_of(f"version = 1\n{body}".encode())
    assert [problem.path for problem in problems] == [f'slice[{n}] "s{n}".ports' for n in range(1, 5)]


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path / "natctl.toml")
    assert (problem.file, problem.path) == (str(tmp_path / "natctl.toml"), "file")
    assert problem.value == "does not exist"


def test_a_directory(tmp_path: Path) -> None:
    assert [problem.value for problem in problems_of(tmp_path)] == ["is a directory"]


def test_a_file_beneath_a_file(tmp_path: Path) -> None:
    (tmp_path / "natctl.toml").write_text(SMALLEST)
    (problem,) = problems_of(tmp_path / "natctl.toml" / "more")
    assert problem.value == "cannot be read: Not a directory"


def test_a_path_with_a_nul() -> None:
    assert [problem.value for problem in problems_of(Path("a\0b"))] == ["cannot be read: embedded null byte"]


@pytest.mark.parametrize("content", [b"", b"  \n\n", b"\xef\xbb\xbf"])
def test_an_empty_file(content: bytes) -> None:
    (problem,) = problems_of(content)
    assert (problem.path, problem.value) == ("file", "empty")


def test_a_byte_order_mark_is_skipped() -> None:
    assert read_policy(b"\xef\xbb\xbf" + SMALLEST.encode()).slices[0].name == "ams-1"


def test_bytes_that_are_not_utf8() -> None:
    (problem,) = problems_of(b"version = 1\n# caf\xe9\n")
    assert problem == Problem("<configuration>", "line 2", "byte 0xe9", "expected UTF-8 text")


def test_lists_nested_without_end() -> None:
    (problem,) = problems_of(b"x = " + b"[" * 5000)
    assert problem.value == "nested too deep"


@pytest.mark.parametrize("part", ["a.", "a . ", "'a'.", '"a.b".'])
def test_keys_of_very_many_parts(part: str) -> None:
    """tomllib would take gigabytes for them."""
    (problem,) = problems_of(f"{part * 50_000}a = 1".encode())
    assert problem.value == "nested too deep"


def test_numbers_of_many_digits() -> None:
    assert problems_of(b"version = " + b"9" * 5000)[0].path == "file"
    assert problems_of(b"version = 0x" + b"f" * 5000)[0].value.startswith("0xfff")


def test_names_of_files_are_used_in_problems(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("version = 1")
    assert problems_of(path)[0].file == str(path)
    with pytest.raises(ConfigError, match=r"\A<stdin>: slice: missing: expected at least one"):
        read_policy(b"version = 1", "<stdin>")


def test_reading_needs_nothing_that_is_slow_to_load() -> None:
    slow = {"numpy", "pyroute2", "jinja2", "rich", "msgspec", "difflib", "json"}
    code = "import sys, nat_rewriter.config; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not slow & set(loaded)
