"""``apply --confirm``: a change stays only where somebody says so, whatever becomes of natctl and its terminal."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confirming import CHANGES, Site, changing
from operating import NATCTL, generations, listing, outcomes, unordered
from waiting import WITHIN_S, wait_until

from netns_lab import Lab
from netns_lab.namespaces import processes_in


@pytest.fixture
def site(lab: Lab, state: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    with changing(lab, getattr(request, "param", "a rebuild")) as site:
        yield site


every_change = pytest.mark.parametrize("site", CHANGES, indirect=True)


@every_change
def test_a_change_that_nobody_confirms_is_taken_back(site: Site) -> None:
    process = site.start(1)
    _, stderr = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 1
    assert "taken back in 1 s, unless natctl apply --confirmed is run before" in stderr
    assert "was rolled back: not confirmed within 1 s\n" in stderr
    site.wait_for_before()
    newest = generations(site.lab)[-1]
    assert (newest["outcome"], newest["reason"]) == ("rolled-back", "not confirmed within 1 s")


@every_change
def test_a_change_is_taken_back_although_natctl_was_killed(site: Site) -> None:
    process = site.start(2)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert site.has_changed()  # the time still runs
    assert outcomes(site.lab)[-1][2] == "unconfirmed"
    site.wait_for_before()
    assert outcomes(site.lab)[-1][2] == "rolled-back"


@every_change
def test_a_change_is_confirmed_by_a_second_apply_of_the_same(site: Site) -> None:
    process = site.start(60)
    kept = listing(site.lab)
    assert "was confirmed" in site.natctl("apply", "--config", site.config, expect=0)
    stdout, _ = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 0
    assert stdout.endswith(" was confirmed\n")
    assert unordered(listing(site.lab)) == unordered(kept)
    assert outcomes(site.lab)[-1][2] == "applied"
    assert not site.guardians()
    assert "up to date" in site.natctl("apply", "--config", site.config, expect=0)


def test_a_change_can_be_confirmed_after_natctl_was_killed(site: Site) -> None:
    process = site.start(60)
    process.kill()
    process.wait()
    assert site.natctl("apply", "--confirmed", "--config", site.config, expect=0) == "generation 2 was confirmed\n"
    wait_until(lambda: not site.guardians(), "the guardian has ended")
    assert site.has_changed()
    assert site.natctl("diff", "--config", site.config, expect=0) == ""
    assert "no change waits to be confirmed" in site.natctl("apply", "--confirmed", "--config", site.config, expect=1)


def test_a_change_that_waits_can_be_taken_back_at_once(site: Site) -> None:
    process = site.start(60)
    assert site.natctl("apply", "--rollback", expect=0) == "generation 2 was rolled back: as asked\n"
    assert process.wait(WITHIN_S) == 1
    site.wait_for_before()


def test_another_configuration_does_not_come_between(site: Site) -> None:
    process = site.start(60)
    other = site.lab.config(coexist="off")
    assert "another configuration waits to be confirmed" in site.natctl("apply", "--config", other, expect=1)
    assert "another configuration waits" in site.natctl("apply", "--config", other, "--confirm", "5", expect=1)
    assert site.is_waiting()
    site.natctl("apply", "--confirmed", expect=0)
    assert process.wait(WITHIN_S) == 0
    assert site.natctl("diff", "--config", site.config, expect=0) == ""


def test_removing_ends_the_waiting(site: Site) -> None:
    process = site.start(3)
    site.natctl("remove", "--config", site.config, expect=0)
    assert process.wait(WITHIN_S) == 0
    time.sleep(0.5)
    assert "table inet natctl" not in listing(site.lab)
    assert [outcome for _, _, outcome in outcomes(site.lab)] == ["applied", "applied", "applied"]


def test_nothing_to_change_is_nothing_to_confirm(lab: Lab) -> None:
    path = lab.config()
    lab.natctl("apply", "--config", path, expect=0)
    done = lab.natctl("apply", "--config", path, "--confirm", "60", expect=0)
    assert (done.stdout, done.stderr) == ("table inet natctl: up to date\n", "")


def test_going_back_can_be_confirmed_too(site: Site) -> None:
    site.natctl("apply", "--config", site.config, expect=0)
    kept = listing(site.lab)
    process = site.lab.egress.popen([*NATCTL, "apply", "--rollback", "--confirm", "1"])
    assert process.wait(WITHIN_S) == 1
    assert unordered(listing(site.lab)) == unordered(kept)
    assert [outcome for _, _, outcome in outcomes(site.lab)] == ["applied", "applied", "rolled-back"]


def test_what_the_guardian_holds_is_in_memory(site: Site, state: Path) -> None:
    process = site.start(2)
    for path in sorted(state.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    state.rmdir()
    site.config.unlink()
    assert process.wait(WITHIN_S) == 1
    site.wait_for_before()


def test_where_nothing_is_kept_a_change_is_taken_back_all_the_same(site: Site, state: Path) -> None:
    for path in sorted(state.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    state.rmdir()
    state.write_text("a file where the directory should be")
    process = site.start(1)
    _, stderr = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 1
    assert "the change of table inet natctl was rolled back" in stderr
    site.wait_for_before()


def test_a_table_that_could_not_come_back_is_not_touched(lab: Lab, state: Path) -> None:
    """Its rules are natctl's, but nothing is known of them, and nft 1.0.6 does not read what it lists itself."""
    lab.natctl("apply", "--config", lab.config(coexist="refuse"), "--state", state.with_name("other"), expect=0)
    before = listing(lab)
    text = lab.egress.run(["nft", "-s", "-t", "list", "table", "inet", "natctl"]).stdout
    if lab.egress.run(["nft", "-c", "-f", "-"], input=text, check=False).returncode == 0:
        pytest.skip("this nft reads what it lists")
    done = lab.natctl("apply", "--config", lab.config(coexist="off"), "--confirm", "1", expect=1)
    assert "find way back: this table is not what natctl applied last" in done.stderr
    assert unordered(listing(lab)) == unordered(before)
    assert outcomes(lab)[-1][2] == "failed"
    assert not list(processes_in(Path("/run/netns", lab.egress.name)))


def test_a_table_that_somebody_tampered_with_comes_back_as_it_was(site: Site) -> None:
    site.lab.egress.nft("add rule inet natctl guard counter accept\nadd element inet natctl soft4 { 192.0.2.1 }")
    tampered = listing(site.lab)
    assert tampered != site.before
    process = site.start(1)
    assert process.wait(WITHIN_S) == 1
    wait_until(lambda: unordered(listing(site.lab)) == unordered(tampered), "the table is what it was")


def test_what_packets_recorded_is_there_before_and_after(site: Site) -> None:
    site.lab.egress.nft(
        "add element inet natctl strays4 { tcp . 198.51.100.10 . 1 . 203.0.113.1 . 443 counter packets 7 bytes 420 }"
    )
    assert site.start(1).wait(WITHIN_S) == 1
    found = site.lab.egress.run(["nft", "list", "set", "inet", "natctl", "strays4"]).stdout
    assert "198.51.100.10 . 1 . 203.0.113.1 . 443 counter packets 7 bytes 420" in found


def test_flows_live_through_the_change_and_the_way_back(site: Site) -> None:
    server = site.lab.server.tcp_server(443)
    held = site.lab.client.tcp_connect(("203.0.113.1", 443))
    assert site.start(1).wait(WITHIN_S) == 1
    held.sendall(b"still here")
    assert held.recv(64) == b"still here"
    assert len(server.peers) == 1


def test_a_guardian_told_to_end_takes_the_change_back(site: Site) -> None:
    process = site.start(60)
    (guardian,) = set(site.guardians()) - {process.pid}
    os.kill(guardian, signal.SIGTERM)
    _, stderr = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 1
    assert "was rolled back: the guardian was told to end" in stderr
    site.wait_for_before()


def test_natctl_stands_in_for_a_guardian_that_was_killed(site: Site) -> None:
    process = site.start(60)
    (guardian,) = set(site.guardians()) - {process.pid}
    os.kill(guardian, signal.SIGKILL)
    _, stderr = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 1
    assert "was rolled back: the guardian was killed" in stderr
    site.wait_for_before()


def test_the_guardian_keeps_nothing_of_its_caller_open(site: Site) -> None:
    """A pipe that natctl was given is at its end when natctl is, though the guardian still waits."""
    reader, writer = os.pipe()
    process = site.start(60, pass_fds=(writer,))
    os.close(writer)
    process.kill()
    process.communicate(timeout=5)
    assert select.select([reader], [], [], 5)[0] == [reader]
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert site.is_waiting()


STRANGER = """
import os, sys
from nat_rewriter.kernel.confirm_socket import call, is_waiting
os.setuid(65534)
print(is_waiting("natctl"), call("natctl", sys.argv[1]))
"""


@pytest.mark.parametrize("word", ["keep", "undo", ""])
def test_strangers_are_not_heard(word: str, site: Site) -> None:
    process = site.start(60)
    done = site.lab.egress.run([sys.executable, "-c", STRANGER, word], check=False)
    if "Invalid argument" in done.stderr:
        pytest.skip("there is no other user in this user namespace")
    assert "None" in done.stdout, done.stderr
    assert site.is_waiting()
    assert process.poll() is None
