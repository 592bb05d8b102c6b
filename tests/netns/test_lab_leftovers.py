"""What killed runs leave of labs: ``natctl lab down --all`` takes it away, and nothing of those that live.

All of it happens in a mount namespace with a /run of its own, since --all means every lab below /run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from users import ORDINARY
from waiting import wait_until

from netns_lab import state
from netns_lab.host import end_process

# A run of tests with namespaces of all kinds, of which natctl lab knows no record, and a scratch directory.
RUN = """
import time
from netns_lab import namespaces
from netns_lab.scratch import scratch_directory
moving, contract = namespaces.unique_name("moving"), namespaces.unique_name("contract")
names = [namespaces.namespace_name(moving, host) for host in ("client", "egress-a")]
for name in [*names, namespaces.namespace_name(contract)]:
    namespaces.create(name)
with scratch_directory(moving, "fleet") as directory:
    print(moving, contract, directory, flush=True)
    time.sleep(60)
"""
# A namespace after whose name its maker has ended, as it looks to whoever cannot see the maker's pid namespace.
UNSEEN = """
import time
from netns_lab import namespaces
namespaces.create("natctl-{pid}-abcdef-client")
print(flush=True)
time.sleep(60)
"""


class Place:
    """A mount namespace with an empty /run, a directory for temporary files, and what is run there."""

    def __init__(self, temporary: Path, resources: ExitStack, user: Sequence[str] = ()) -> None:
        self._resources = resources
        self._natctl_lab = [*user, sys.executable, "-m", "nat_rewriter", "lab"]
        self._environment = os.environ | {"TMPDIR": str(temporary), "XDG_RUNTIME_DIR": str(temporary)}
        script = "mount -t tmpfs none /run && mkdir /run/netns && echo && exec sleep 600"
        holder = self._start(["unshare", "--mount", "sh", "-c", script])
        self._enter = ["nsenter", f"--target={holder.pid}", "--mount", f"--wd={Path.cwd()}"]

    def python(self, script: str) -> tuple[subprocess.Popen[str], list[str]]:
        """Start a script, and return the words of its first line."""
        process = self._start([*self._enter, sys.executable, "-c", script])
        return process, self._first

    def inside(self, namespace: str, script: str) -> subprocess.Popen[str]:
        """Start a shell script in a namespace; it has begun when this returns."""
        return self._start([*self._enter, "ip", "netns", "exec", namespace, "sh", "-c", script])

    def lab(self, *words: str) -> list[str]:
        """Return the lines that ``natctl lab`` prints."""
        command = [*self._enter, *self._natctl_lab, *words]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False, timeout=60)
        if "lab without root" in done.stderr:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def shell(self, name: str, script: str) -> subprocess.Popen[str]:
        """Start a shell script in a lab by ``natctl lab shell``; it has begun when this returns."""
        return self._start(
            [*self._enter, *self._natctl_lab, "shell", "client", "--name", name, "--", "sh", "-c", script]
        )

    def namespaces(self) -> set[str]:
        """Return the names of the namespaces there are."""
        listed = subprocess.run([*self._enter, "ls", "/run/netns"], capture_output=True, text=True, check=True)
        return set(listed.stdout.split())

    def touch(self, *names: str) -> None:
        """Make namespaces as other programs do."""
        for name in names:
            subprocess.run([*self._enter, "ip", "netns", "add", name], check=True)

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(command, env=self._environment, stdout=subprocess.PIPE, text=True)
        self._resources.callback(end_process, process)
        assert process.stdout is not None
        self._first = process.stdout.readline().split()
        return process


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place for labs that nobody else sees."""
    tmp_path.chmod(0o700)
    with ExitStack() as resources:
        yield Place(tmp_path, resources)


@pytest.fixture(params=[(), ORDINARY], ids=["root", "ordinary"])
def place_of_a_user(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Such a place, where natctl has the rights of root or not."""
    tmp_path.chmod(0o700)
    with ExitStack() as resources:
        yield Place(tmp_path, resources, request.param)


def killed(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def test_all_takes_away_what_a_killed_run_has_left_and_nothing_of_one_that_lives(place: Place) -> None:
    (_, living), (dead_process, dead) = place.python(RUN), place.python(RUN)
    place.touch("blue", "natctl-backup", "natctl-1-2")
    assert len(place.namespaces()) == 9
    killed(dead_process)
    removed = place.lab("down", "--all")
    assert removed == [f"lab {name} is down" for name in sorted(dead[:2])]
    ours = {f"natctl-{living[0]}-client", f"natctl-{living[0]}-egress-a", f"natctl-{living[1]}"}
    assert place.namespaces() == {*ours, "blue", "natctl-backup", "natctl-1-2"}
    assert (Path(living[2]).exists(), Path(dead[2]).exists()) == (True, False)
    assert place.lab("down", "--all") == []


def test_leftovers_are_listed_with_the_process_that_made_them(place: Place) -> None:
    (living_process, living), (dead_process, dead) = place.python(RUN), place.python(RUN)
    killed(dead_process)
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in place.lab("list")}
    assert lines == {
        **dict.fromkeys(living[:2], f"kept by process {living_process.pid}"),
        **dict.fromkeys(dead[:2], f"left behind by process {dead_process.pid}"),
    }


def test_a_lab_that_is_up_stays_while_somebody_is_in_it(place_of_a_user: Place) -> None:
    place_of_a_user.lab("up", "--name", "mine")
    shell = place_of_a_user.shell("mine", "echo && exec sleep 60")
    assert place_of_a_user.lab("down", "--all") == []
    assert shell.poll() is None
    killed(shell)
    assert place_of_a_user.lab("down", "--all") == ["lab mine is down"]
    place_of_a_user.lab("up", "--name", "mine")
    shell = place_of_a_user.shell("mine", "echo && exec sleep 60")
    assert place_of_a_user.lab("down", "--all", "--force") == ["lab mine is down"]
    assert shell.wait(10) != 0


def test_scratch_directories_alone_are_taken_away_too(place: Place) -> None:
    process, (moving, contract, directory) = place.python(RUN)
    killed(process)
    kept = Path(directory).with_name(f"natctl-lab-{os.getpid()}-abcdef-abcdefgh")
    kept.mkdir()
    place.lab("down", moving)
    assert not Path(directory).exists()
    Path(directory).mkdir()
    assert place.lab("down", "--all") == [f"lab {name} is down" for name in sorted((moving, contract))]
    assert (Path(directory).exists(), kept.exists()) == (False, True)


def test_processes_that_a_killed_run_has_left_end_with_its_namespaces(place: Place) -> None:
    process, (moving, *_) = place.python(RUN)
    orphan = place.inside(f"natctl-{moving}-client", "echo && exec sleep 60")
    killed(process)
    place.lab("down", "--all")
    assert orphan.wait(10) == -signal.SIGTERM


def test_a_namespace_stays_while_its_maker_lives_in_a_pid_namespace_that_is_not_seen(place: Place) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    process, _ = place.python(UNSEEN.format(pid=ended.pid))
    assert place.lab("down", "--all") == []
    killed(process)
    assert place.lab("down", "--all") == [f"lab {ended.pid}-abcdef is down"]


def test_a_process_of_another_pid_namespace_lives_by_the_id_that_it_has_there() -> None:
    last = int(Path("/proc/sys/kernel/pid_max").read_text()) - 1
    pid = next(pid for pid in range(last, 0, -1) if not state.Process(pid).alive())
    script = f"echo {pid - 1} >/proc/sys/kernel/ns_last_pid; sleep 60 & echo; wait"
    command = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert state.Process(pid).alive()
    finally:
        end_process(process)
    wait_until(lambda: not state.Process(pid).alive())
