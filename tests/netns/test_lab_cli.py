"""``natctl lab`` as its users type it, with the rights of root and without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from users import ORDINARY

from netns_lab import namespaces
from netns_lab.lab import list_all
from netns_lab.state import Process

NATCTL = (sys.executable, "-m", "nat_rewriter")
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(params=[(), ORDINARY], ids=["root", "ordinary"])
def natctl_lab(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Run ``natctl lab``; without root its records are in a directory of this test's own."""
    tmp_path.chmod(0o700)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [*request.param, *NATCTL, "lab", *words]
        environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
        if "lab without root" in done.stderr:
            pytest.skip(done.stderr.strip())
        return done

    return run


@pytest.fixture
def name(natctl_lab: Run) -> Iterator[str]:
    """The name of a lab for this test, which is taken down afterwards."""
    name = namespaces.unique_name("cli")
    yield name
    done = natctl_lab("down", name)
    assert done.returncode == 0 or "there is none of that name" in done.stderr, done.stderr


def test_a_lab_stays_up_until_it_is_taken_down(natctl_lab: Run, name: str) -> None:
    assert natctl_lab("up", "--name", name).returncode == 0
    assert name in natctl_lab("list").stdout
    inside = natctl_lab("shell", "egress", "--name", name, "--", "ip", "-br", "addr")
    assert "198.51.100.10/32" in inside.stdout
    assert natctl_lab("shell", "client", "--name", name, "--", "sh", "-c", "exit 7").returncode == 7
    told = natctl_lab("shell", "cleint", "--name", name)
    assert told.returncode == 1
    assert "no such file or directory, and no host either: client, egress, server, upstream: 'cleint'" in told.stderr
    assert natctl_lab("down", name).stdout == f"lab {name} is down\n"
    assert name not in natctl_lab("list").stdout


def test_a_scenario_runs_in_a_lab_that_is_up_and_leaves_its_traces(natctl_lab: Run, name: str) -> None:
    natctl_lab("up", "--name", name, "--clients", "3")
    done = natctl_lab("run", "icmp-ids", "--in", name)
    assert (done.returncode, done.stderr) == (0, "")
    inside = natctl_lab("shell", "egress", "--name", name, "--", "nft", "list", "tables")
    assert "table inet natctl" in inside.stdout


def test_a_scenario_runs_in_a_lab_of_its_own(natctl_lab: Run) -> None:
    done = natctl_lab("run", "icmp-ids", "--json")
    assert done.returncode == 0
    assert {'"met": true' in line for line in done.stdout.splitlines()} == {True}


def test_slices_and_clients_can_be_chosen(natctl_lab: Run, name: str) -> None:
    natctl_lab("up", "--name", name, "--slice", "198.51.100.77:80-81", "--clients", "3")
    assert "198.51.100.77/32" in natctl_lab("shell", "egress", "--name", name, "--", "ip", "-br", "addr").stdout
    assert "10.0.0.4/24" in natctl_lab("shell", "client", "--name", name, "--", "ip", "-br", "addr").stdout


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("down", "nosuch"), 1, "find lab: there is none of that name, natctl lab up makes one: 'nosuch'"),
        (("shell", "--name", "nosuch"), 1, "find lab"),
        (("run", "nosuch"), 2, "expected one of collision-tcp-off"),
        (("run",), 2, "expected a name, --every or --list"),
        (("run", "dnat", "--in", "nosuch"), 1, "find lab"),
        (("up", "--name", "a/b"), 2, "expected a name of letters"),
        (("up", "--slice", "x"), 2, "expected ADDRESS:PORT-PORT"),
    ],
)
def test_mistakes_are_named(natctl_lab: Run, words: tuple[str, ...], code: int, says: str) -> None:
    done = natctl_lab(*words)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr


def test_a_second_lab_of_the_same_name_is_refused(natctl_lab: Run, name: str) -> None:
    natctl_lab("up", "--name", name)
    done = natctl_lab("up", "--name", name)
    assert (done.returncode, "of that name already" in done.stderr) == (1, True)
    assert natctl_lab("shell", "--name", name, "--", "true").returncode == 0


def test_a_lab_that_lacks_what_a_scenario_is_about_is_refused(natctl_lab: Run, name: str) -> None:
    natctl_lab("up", "--name", name)
    done = natctl_lab("run", "icmp-ids", "--in", name)
    assert (done.returncode, "made by natctl lab up --clients 3 for it: 'icmp-ids'" in done.stderr) == (2, True)
    done = natctl_lab("run", "spread-flow", "--in", name)
    assert "natctl lab up --slice 198.51.100.10:9000-9099," in done.stderr


def test_scenarios_are_listed_in_groups(natctl_lab: Run) -> None:
    lines = natctl_lab("run", "--list").stdout.splitlines()
    assert lines[0] == "A NAT flow and a local socket want the same tuple"
    assert lines[1].split()[0] == "collision-tcp-off"
    assert all(len(line) <= 140 for line in lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_scenario_leaves_nothing(number: signal.Signals) -> None:
    with subprocess.Popen([*NATCTL, "lab", "run", "exhaustion"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "apply" not in process.stdout.readline():
            pass
        process.send_signal(number)
        process.stdout.read()
    assert process.returncode != 0
    assert not [name for name in list_all() if namespaces.maker(name) == Process(process.pid)]


def test_where_user_namespaces_are_forbidden_one_line_says_so(tmp_path: Path) -> None:
    forbid = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
    enter = [sys.executable, "-m", "netns_lab.enter", "--"]
    command = [*ORDINARY, *enter, "sh", "-c", forbid, "sh", *ORDINARY, *NATCTL, "lab", "demo"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 4
    assert done.stderr == (
        "natctl: lab without root: not supported here: needs sysctl user.max_user_namespaces above 0, "
        "found user.max_user_namespaces=0\n"
    )


@pytest.mark.parametrize("command", ["up", "shell", "run", "demo", "down", "list"])
def test_every_command_has_help_with_examples(natctl_lab: Run, command: str) -> None:
    done = natctl_lab(command, "--help")
    assert (done.returncode, f"natctl lab {command}" in done.stdout.split("Examples:")[-1]) == (0, True)
