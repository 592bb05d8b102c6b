"""``diff`` as a person reads it: slices and rules by name, and the live flows that each change touches."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from operating import listing

from netns_lab import Lab
from netns_lab.topology import SERVER, SERVER_6, SOFT_ADDRESS

SLICES = ["198.51.100.10:9000-9009", "198.51.100.10:9100-9109", "[2001:db8:100::10]:9000-9009"]
DNAT = '[[dnat]]\nname = "in"\nslice = "ams-2"\nports = ["9100"]\nto = "10.0.0.2"\n'


@pytest.fixture
def busy(lab_factory: object, state: Path) -> Lab:
    """A lab with three NAT flows on ams-1, one on ams-3, one inbound on ams-2, and one of a socket on ams-1."""
    lab: Lab = lab_factory(slices=SLICES)  # type: ignore[operator]
    path = lab.config(extra=DNAT)
    path.write_text(path.read_text().replace('slices = ["ams-1", "ams-2"]', 'slices = ["ams-1"]'))
    lab.natctl("apply", "--config", path, expect=0)
    lab.server.tcp_server(443)
    lab.client.tcp_server(9100)
    for _ in range(3):
        lab.client.tcp_connect((SERVER, 443))
    lab.client.tcp_connect((SERVER_6, 443))
    lab.egress.tcp_connect((SERVER, 443), src=(SOFT_ADDRESS, 9005))
    lab.server.tcp_connect((SOFT_ADDRESS, 9100))
    return lab


def edited(lab: Lab, *replacements: tuple[str, str]) -> Path:
    path = lab.config(extra=DNAT)
    text = path.read_text().replace('slices = ["ams-1", "ams-2"]', 'slices = ["ams-1"]')
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def without(lab: Lab, *names: str) -> Path:
    """Return the configuration without the tables of these names."""
    path = edited(lab)
    parts = path.read_text().split("\n\n")
    path.write_text("\n\n".join(part for part in parts if not any(f'name = "{name}"' in part for name in names)))
    return path


def test_nothing_to_do_is_nothing_to_tell(busy: Lab) -> None:
    done = busy.natctl("diff", "--config", edited(busy), expect=0)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_slice_withdrawn_is_told_with_its_flows(busy: Lab) -> None:
    shown = busy.natctl("diff", "--config", without(busy, "ams-2", "in"), expect=3).stdout
    assert shown == (
        "- slice ams-2: address 198.51.100.10, ports 9100-9109, protocols tcp, udp, icmp; "
        "1 live flow, 1 of them left without a slice\n"
        "- dnat in: slice ams-2, ports 9100, to 10.0.0.2; 1 live flow\n"
    )


def test_a_slice_that_shrinks_is_told_with_the_flows_left_outside(busy: Lab) -> None:
    shown = busy.natctl("diff", "--config", edited(busy, ('"9000-9009"]\nprotocols', '"9005-9009"]\nprotocols'))).stdout
    # One of the four is the socket on 9005; the flows of clients have ports that the kernel chose.
    outside = sum(flow["reply"]["dport"] < 9005 for flow in flows(busy, "ams-1"))
    rest = f"4 live flows{f', {outside} of them left without a slice' if outside else ''}"
    assert f"~ slice ams-1: ports 9000-9009 -> 9005-9009; {rest}\n" in shown


def flows(lab: Lab, name: str) -> list[dict[str, dict[str, int]]]:
    found: list[dict[str, dict[str, int]]] = lab.natctl(
        "flows", "--slice", name, "--json", "--config", edited(lab), expect=0
    ).lines()
    return found


def test_rules_are_told_with_the_flows_that_they_rewrote(busy: Lab) -> None:
    path = edited(busy, ('source = ["10.0.0.0/24"]', 'source = ["10.0.0.0/25"]'), ('"10.0.0.2"', '"10.0.0.3"'))
    shown = busy.natctl("diff", "--config", path, expect=3).stdout
    assert shown == (
        "~ snat clients-ipv4: source 10.0.0.0/24 -> 10.0.0.0/25; 3 live flows\n"
        "~ dnat in: to 10.0.0.2 -> 10.0.0.3; 1 live flow\n"
    )


def test_what_comes_is_told_with_the_flows_that_are_there_already(busy: Lab) -> None:
    busy.egress.tcp_connect((SERVER, 443), src=("100.64.0.2", 7001))
    path = edited(busy)
    path.write_text(path.read_text() + '\n[[slice]]\nname = "own"\naddress = "100.64.0.2"\nports = ["7000-7009"]\n')
    shown = busy.natctl("diff", "--config", path, expect=3).stdout
    assert shown == "+ slice own: address 100.64.0.2, ports 7000-7009, protocols tcp, udp; 1 live flow\n"


def test_a_setting_is_told_and_with_v_every_line(busy: Lab) -> None:
    path = edited(busy, ('guard = "drop"', 'guard = "count"'))
    assert busy.natctl("diff", "--config", path, expect=3).stdout == "~ controller guard: drop -> count\n"
    more = busy.natctl("diff", "-v", "--config", path, expect=3).stdout
    assert more.startswith("~ controller guard: drop -> count\n")
    assert re.search(r"^-\t\tcounter .*drop$", more, re.MULTILINE)


def test_as_json(busy: Lab) -> None:
    found = busy.natctl("diff", "--json", "--config", without(busy, "ams-2", "in"), expect=3).json()
    assert [(one["name"], one["flows"], one["stranded"]) for one in found["slices"]["withdrawn"]] == [("ams-2", 1, 1)]
    assert [(one["kind"], one["name"], one["flows"]) for one in found["rules"]["withdrawn"]] == [("dnat", "in", 1)]
    assert found["action"] == "rebuild"
    assert "9104 . 198.51.100.10" in found["sets"]["owned4_1"]["removed"]


def test_what_somebody_else_has_changed_is_told_beside_what_the_configuration_changes(busy: Lab) -> None:
    path = edited(busy, ('guard = "drop"', 'guard = "count"'))
    busy.egress.nft("add element inet natctl soft4 { 203.0.113.99 }")
    busy.egress.nft("insert rule inet natctl guard accept")
    shown = busy.natctl("diff", "--config", path, expect=3).stdout
    told, _, foreign = shown.partition("and takes back what somebody else has changed in the table:\n")
    assert told == "~ controller guard: drop -> count\n"
    lines = [line for line in foreign.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert lines == ["-\t\taccept", "-soft4: 203.0.113.99"]
    assert busy.natctl("diff", "--json", "--config", path, expect=3).json()["foreign"] == foreign.splitlines()
    busy.natctl("apply", "--config", path, expect=0)
    assert busy.natctl("diff", "--json", "--config", edited(busy), expect=3).json()["foreign"] == []


def test_after_a_reboot_everything_comes_anew(busy: Lab) -> None:
    busy.egress.nft("delete table inet natctl")
    shown = busy.natctl("diff", "--config", edited(busy), expect=3).stdout
    assert "+ slice ams-1: address 198.51.100.10" in shown
    assert shown.endswith("+table inet natctl\n")


def test_where_nothing_is_known_lines_are_told(busy: Lab, tmp_path: Path) -> None:
    path = without(busy, "ams-2", "in")
    shown = busy.natctl("diff", "--config", path, "--state", tmp_path / "none", expect=3).stdout
    assert "-owned4_1: 9104 . 198.51.100.10\n" in shown
    assert "slice ams-2" not in shown


def test_what_apply_changed_is_told_the_same_way(busy: Lab) -> None:
    path = without(busy, "ams-2", "in")
    before = listing(busy)
    shown = busy.natctl("apply", "-v", "--config", path, expect=0).stdout
    assert shown.startswith("- slice ams-2: address 198.51.100.10, ports 9100-9109, protocols tcp, udp, icmp\n")
    assert listing(busy) != before


def test_a_local_socket_counts_as_a_flow(busy: Lab) -> None:
    shown = busy.natctl("diff", "--config", without(busy, "ams-1", "clients-ipv4"), expect=3).stdout
    assert "- slice ams-1: " in shown
    assert "4 live flows, 4 of them left without a slice" in shown
