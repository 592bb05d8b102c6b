"""What ``natctl route`` changes: in which order, what a crash leaves, and that all of it comes back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from routing import ANSWERS, SOFT, TABLE, Router, configured, placeholder, route_keys, snapshot

from nat_rewriter.controller import routing
from nat_rewriter.controller.generations import place_of
from nat_rewriter.controller.routing import apply_with, held_routing, remove_with, take_step
from nat_rewriter.errors import LockHeld, NatctlError
from nat_rewriter.kernel.lock import table_lock
from nat_rewriter.model.routing import Step
from netns_lab import Lab
from netns_lab.host import family_of

CYCLES = 200 if os.environ.get("NATCTL_LONG") else 30
LOCAL = {4: ("127.0.0.1", SOFT[4]), 6: ("::1", SOFT[6])}
# A device that every sandbox has, in place of a TUN device: nothing is sent through it here.
BEHIND = {"tunnel": "fish0", "via": ["10.0.0.2", "2001:db8:10::2"]}


@pytest.fixture(autouse=True)
def _own_state(state: Path) -> None:
    """Keep what was changed for this test alone."""


@pytest.fixture
def router(lab: Lab) -> Router:
    return Router(lab)


class Cut(BaseException):
    """The end of a process, as far as the kernel can tell."""


@contextmanager
def cut_after(count: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Step]]:
    """Let only so many steps happen."""
    taken: list[Step] = []

    def take(step: Step, kernel: routing.Kernel) -> None:
        if len(taken) == count:
            raise Cut
        taken.append(step)
        take_step(step, kernel)

    with monkeypatch.context() as patched:
        patched.setattr(routing, "take_step", take)
        yield taken


# apply and remove


@pytest.mark.parametrize("answer", [*ANSWERS, "off"])
def test_all_is_as_before_after_remove(answer: str, lab: Lab, router: Router) -> None:
    before = snapshot(lab)
    assert router.apply(answer, **BEHIND)
    assert snapshot(lab) != before
    assert router.show()["state"] == "in place"
    assert router.apply(answer, **BEHIND) == []
    router.remove()
    assert snapshot(lab) == before
    assert router.remove() == []
    assert router.show()["state"] == "absent"


def test_another_configuration_leaves_nothing_of_the_one_before(lab: Lab, router: Router) -> None:
    before = snapshot(lab)
    for answer, keys in (
        ("sysctl", {}),
        ("ingress", {"priority": 5, "local_priority": 9}),
        ("off", {"slices": ["ams-1"], "table": 99, "mark": 0x10, "mask": 0xF0, "via": ["10.0.0.2"]}),
        ("ingress", {"slices": ["ams-2"], "outer": ["up0", "lo"], "via": ["2001:db8:10::2"]}),
    ):
        keys = BEHIND | keys
        router.apply(answer, **keys)
        assert router.show()["state"] == "in place"
        once = snapshot(lab)
        router.remove()
        assert snapshot(lab) == before
        router.apply(answer, **keys)
        assert snapshot(lab).splitlines() == once.splitlines()
    router.remove()
    assert snapshot(lab) == before


def test_what_somebody_changed_is_mended(lab: Lab, router: Router) -> None:
    before = snapshot(lab)
    router.apply(**BEHIND)
    for command in (
        "ip rule del pref 1",
        "ip -6 rule add pref 0 lookup local",
        "ip route flush table 5432",
        "nft flush chain netdev natctl_route from_outside",
        "sysctl -q net.ipv4.conf.fish0.accept_local=0",
    ):
        lab.egress.run(command.split())
        shown = router.show()
        assert (shown["state"], bool(shown["missing"])) == ("incomplete", True), command
        assert router.apply(**BEHIND), command
        assert router.show()["state"] == "in place"
        assert router.apply(**BEHIND) == []
    router.remove()
    assert snapshot(lab) == before


def test_the_local_rule_of_an_operator_comes_back_where_it_was(lab: Lab, router: Router) -> None:
    for command in (
        "ip rule add pref 7 lookup local",
        "ip rule del pref 0",
        "ip rule add pref 30 to 192.0.2.1 lookup 9",
    ):
        lab.egress.run(command.split())
    before = snapshot(lab)
    router.apply(priority=10, local_priority=20, **BEHIND)
    assert "\n20:\tfrom all lookup local" in snapshot(lab)
    assert "7:\tfrom all lookup local" not in snapshot(lab)
    router.remove()
    assert snapshot(lab) == before


def test_a_local_rule_that_comes_later_by_itself_is_left_alone(lab: Lab, router: Router) -> None:
    for command in ("ip rule add pref 1000 lookup local", "ip rule del pref 0"):
        lab.egress.run(command.split())
    router.apply(**BEHIND)
    rules = lab.egress.run(["ip", "rule"]).stdout
    assert (rules.count("lookup local"), "\n1000:\tfrom all lookup local\n" in rules) == (1, True)
    router.remove()
    assert lab.egress.run(["ip", "rule"]).stdout.startswith("1000:\tfrom all lookup local\n")


def test_no_rule_of_others_comes_before_the_local_table_by_it(lab: Lab, router: Router) -> None:
    lab.egress.run(["ip", "rule", "add", "pref", "2", "to", "192.0.2.1", "lookup", "9"])
    before = snapshot(lab)
    with pytest.raises(NatctlError, match="this rule of somebody else would come before the local table's"):
        router.apply(**BEHIND)
    assert snapshot(lab) == before


def test_a_sysctl_that_somebody_changed_since_is_left_alone(lab: Lab, router: Router) -> None:
    router.apply("sysctl", **BEHIND)
    lab.egress.sysctl("net.ipv4.udp_early_demux", 1)
    lab.egress.sysctl("net.ipv4.conf.fish0.accept_local", 0)
    router.remove()
    shown = snapshot(lab)
    assert "net.ipv4.udp_early_demux = 1" in shown
    assert "net.ipv4.tcp_early_demux = 1" in shown


# crashes


def test_wherever_apply_is_cut_the_next_one_mends_and_remove_brings_all_back(
    lab: Lab, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(lab)
    steps = router.apply("sysctl", **BEHIND)
    whole = snapshot(lab)
    router.remove()
    for count in range(len(steps)):
        for mend in (True, False):
            with cut_after(count, monkeypatch), pytest.raises(Cut):
                router.apply("sysctl", **BEHIND)
            if mend:
                router.apply("sysctl", **BEHIND)
                assert snapshot(lab) == whole
            router.remove()
            assert snapshot(lab) == before


def test_wherever_remove_is_cut_the_next_one_ends_it(lab: Lab, router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(lab)
    for count in range(30):
        router.apply("ingress", **BEHIND)
        with cut_after(count, monkeypatch):
            try:
                router.remove()
            except Cut:
                assert snapshot(lab) != before or count == 0
            else:
                break
        router.remove()
        assert snapshot(lab) == before
    assert count > 5


def test_without_its_record_all_but_sysctls_comes_back(lab: Lab, router: Router, state: Path) -> None:
    rules = lab.egress.run(["ip", "rule"]).stdout, lab.egress.run(["ip", "-6", "rule"]).stdout
    router.apply(**BEHIND)
    (kept,) = state.rglob("route.json")
    kept.unlink()
    router.remove()
    assert (lab.egress.run(["ip", "rule"]).stdout, lab.egress.run(["ip", "-6", "rule"]).stdout) == rules
    assert lab.egress.run(["nft", "list", "ruleset"]).stdout == ""
    assert lab.egress.run(["ip", "route", "show", "table", "5432"], check=False).stdout == ""


def test_a_natctl_that_is_killed_leaves_what_the_next_one_takes_away(lab: Lab, state: Path) -> None:
    """Real processes, killed at moments of their own."""
    before = snapshot(lab)
    path = configured(lab, "sysctl", **BEHIND)
    began = time.monotonic()
    lab.natctl("route", "apply", "--config", path, expect=0)
    took = time.monotonic() - began
    lab.natctl("route", "remove", "--config", path, expect=0)
    for part in (0.5, 0.7, 0.8, 0.9):
        command = [sys.executable, "-m", "nat_rewriter", "route", "apply", "--config", str(path)]
        process = lab.egress.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(took * part)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    lab.natctl("route", "remove", "--wait", "10", "--config", path, expect=0)
    assert snapshot(lab) == before


# the moment of the change


class Traffic:
    """Packets to local addresses, without a pause, and every one that is lost: a new lookup for each."""

    def __init__(self, lab: Lab) -> None:
        self.sent, self.lost = 0, list[str]()
        self._stop = threading.Event()
        self._sockets = [self._listener(lab, family) for family in (4, 6)]
        works = [self._datagrams, self._connections]
        self._threads = [
            threading.Thread(target=work, args=(lab, family), daemon=True) for work in works for family in (4, 6)
        ]

    def _listener(self, lab: Lab, family: int) -> tuple[socket.socket, socket.socket]:
        udp = lab.egress.open_socket(socket.SOCK_DGRAM, family_of(SOFT[family]))
        tcp = lab.egress.open_socket(socket.SOCK_STREAM, family_of(SOFT[family]))
        for sock in (udp, tcp):
            sock.bind(("::" if family == 6 else "0.0.0.0", 7000 + family))
        tcp.listen(4096)
        return udp, tcp

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _datagrams(self, lab: Lab, family: int) -> None:
        receiver = self._sockets[(family == 6)][0]
        receiver.settimeout(5)
        sender = lab.egress.open_socket(socket.SOCK_DGRAM, family_of(SOFT[family]))
        while not self._stop.is_set():
            for address in LOCAL[family]:
                self._count(lambda address=address: self._datagram(sender, receiver, (address, 7000 + family)))

    def _datagram(self, sender: socket.socket, receiver: socket.socket, to: tuple[str, int]) -> None:
        sender.sendto(b"x", to)
        receiver.recv(10)

    def _connections(self, lab: Lab, family: int) -> None:
        listener = self._sockets[(family == 6)][1]
        listener.settimeout(5)
        while not self._stop.is_set():
            for address in LOCAL[family]:
                self._count(lambda address=address: self._connection(lab, listener, (address, 7000 + family)))

    def _connection(self, lab: Lab, listener: socket.socket, to: tuple[str, int]) -> None:
        with lab.egress.enter():
            sock = socket.socket(family_of(to[0]), socket.SOCK_STREAM)
        with sock:
            sock.settimeout(0.9)  # a SYN is sent again after a second: that would be a loss
            sock.connect(to)
            listener.accept()[0].close()

    def _count(self, attempt: object) -> None:
        self.sent += 1
        try:
            attempt()  # type: ignore[operator]
        except OSError as error:
            self.lost.append(str(error))


def test_there_is_no_moment_without_a_local_table(lab: Lab, router: Router) -> None:
    policy = router.policy(**BEHIND)
    with Traffic(lab) as traffic, lab.egress.enter():
        place = place_of(None, TABLE)
        with held_routing(TABLE) as kernel:
            for _ in range(CYCLES):
                assert apply_with(kernel, policy, place)
                assert remove_with(kernel, TABLE, place)
    assert traffic.sent > CYCLES
    assert traffic.lost == []


# the command


def test_the_command(lab: Lab) -> None:
    before = snapshot(lab)
    path = configured(lab, "sysctl", **BEHIND)
    first = lab.natctl("route", "apply", "-v", "--config", path, expect=0).stdout
    assert "add rule (IPv6) 1: from all fwmark 0x5000000/0xff000000 lookup 5432\n" in first
    assert first.endswith("route: in place\n")
    again = lab.natctl("route", "apply", "--json", "--config", path, expect=0).json()
    assert again == {"changed": False, "steps": []}
    shown = lab.natctl("route", "show", "--config", path, expect=0).stdout
    for line in (
        "route from fish0, replies from up0: in place",
        "mark 0x5000000/0xff000000, routing table 5432",
        "  rule (IPv4) 2: from all lookup local (natctl)",
        "  route 198.51.100.10 via 10.0.0.2 dev fish0 table 5432",
        "  net.ipv4.tcp_early_demux = 0 (before: 1)",
        "early demux: sysctl, table inet natctl_route",
        "  0 replies to the tunnel (IPv4)",
    ):
        assert f"{line}\n" in shown, line
    assert lab.natctl("route", "remove", "--config", path, expect=0).stdout == "route: removed\n"
    assert snapshot(lab) == before
    assert lab.natctl("route", "remove", "--config", path, expect=0).stdout == "route: was not there\n"
    assert lab.natctl("route", "show", "--config", path, expect=3).stdout.startswith(
        "route from fish0, replies from up0: absent\n"
    )


def test_in_another_namespace(lab: Lab) -> None:
    path = configured(lab, **BEHIND)
    command = [sys.executable, "-m", "nat_rewriter", "route", "apply", "--netns", lab.egress.name, "--config", path]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == "route: in place\n"
    assert lab.natctl("route", "show", "--json", "--config", path, expect=0).json()["state"] == "in place"


def test_bad_input(lab: Lab) -> None:
    before = snapshot(lab)
    without = lab.natctl("route", "apply", "--config", lab.config(), expect=2)
    assert "the configuration has no [route]" in without.stderr
    missing = lab.natctl("route", "apply", "--config", configured(lab, tunnel="nowhere0"), expect=1)
    assert "there is no such device" in missing.stderr
    assert "'nowhere0'" in missing.stderr
    wrong = lab.config(extra=route_keys("nonsense", mark=0x1FF, mask=0xFF, tunnel="up0"))
    assert '"ingress", "device", "sysctl", "off"' in lab.natctl("route", "apply", "--config", wrong, expect=2).stderr
    assert snapshot(lab) == before


def test_one_natctl_at_a_time(lab: Lab, router: Router) -> None:
    held = pytest.raises(LockHeld, match=f"held by process {os.getpid()}")
    with lab.egress.enter(), table_lock(f"{TABLE}_route"), held:
        router.apply(**BEHIND)


def test_doctor_says_what_is_missing(lab: Lab, router: Router) -> None:
    path = configured(lab, "device", **BEHIND)

    def checks() -> dict[str, dict[str, str]]:
        lines = lab.natctl("doctor", "--json", "--config", path).lines()
        return {line["name"]: line for line in lines if line["name"].startswith("route")}

    missing = checks()
    assert (missing["route"]["answer"], missing["route"]["remedy"]) == ("no", "natctl route apply")
    router.apply("device", **BEHIND)
    placeholder(lab, "fast-open", (SOFT[4], 9002), ("203.0.113.1", 443))
    found = checks()
    assert found["route"]["answer"] == "yes"
    assert (found["route-sockets"]["answer"], found["route-sockets"]["weight"]) == ("no", "optional")
