"""What goes wrong around a command gets its exit code, and a sentence that names the cause."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from netns_lab import Lab

READERS = ("diff", "apply", "remove")
ALL = ("render", *READERS)


def natctl(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "nat_rewriter", *map(str, words)]


def run(command: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("verb", ALL)
def test_a_configuration_that_is_no_toml(verb: str, lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("version = = 1\n")
    refused = lab.natctl(verb, "--config", path, expect=2)
    assert refused.stderr.startswith(f"natctl: {path}: ")
    assert refused.stdout == ""


@pytest.mark.parametrize("verb", ALL)
def test_every_problem_of_a_configuration_is_told(verb: str, lab: Lab) -> None:
    text = 'version = 1\n[[slice]]\nname = "a b"\naddress = "127.0.0.1"\nports = ["0"]\n'
    refused = lab.natctl(verb, "--config", "-", input=text, expect=2)
    assert [f"slice[0].{key}" in refused.stderr for key in ("name", "address", "ports[0]")] == [True] * 3
    assert refused.stderr.count("<stdin>: ") == 3


@pytest.mark.parametrize("verb", ALL)
def test_a_configuration_that_is_not_there(verb: str, lab: Lab, tmp_path: Path) -> None:
    refused = lab.natctl(verb, "--config", tmp_path / "none.toml", expect=2)
    assert str(tmp_path / "none.toml") in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("verb", ALL)
def test_a_configuration_that_is_a_directory_or_empty(verb: str, lab: Lab, tmp_path: Path) -> None:
    assert "directory" in lab.natctl(verb, "--config", tmp_path, expect=2).stderr
    assert "version" in lab.natctl(verb, "--config", "-", input="", expect=2).stderr


@pytest.mark.parametrize("verb", ALL)
def test_a_namespace_that_is_not_there(verb: str, lab: Lab) -> None:
    for name in ("no-such-namespace", "/nowhere/netns"):
        refused = lab.natctl(verb, "--netns", name, "--config", lab.config(), expect=1)
        assert refused.stderr.startswith("natctl: enter network namespace: does not exist")
        assert refused.stderr.rstrip().endswith(f"{name!r}")


@pytest.mark.parametrize("verb", READERS)
def test_a_namespace_without_a_name_is_not_this_one(verb: str, lab: Lab) -> None:
    refused = lab.natctl(verb, "--netns", "", "--config", lab.config(), expect=1)
    assert refused.stderr == "natctl: enter network namespace: is not a network namespace: ''\n"


def test_a_namespace_that_is_none(lab: Lab, tmp_path: Path) -> None:
    plain = tmp_path / "file"
    plain.touch()
    for path in (plain, Path("/proc/self/ns/uts")):
        refused = lab.natctl("diff", "--netns", path, "--config", lab.config(), expect=1)
        assert refused.stderr == f"natctl: enter network namespace: is not a network namespace: {str(path)!r}\n"


@pytest.fixture
def readable_config(lab: Lab) -> Path:
    """A configuration that every user may read."""
    path = lab.config()
    path.parent.chmod(0o755)
    path.chmod(0o644)
    return path


def unprivileged(lab: Lab, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run natctl on the egress host without any capability."""
    if os.geteuid() != 0:
        pytest.skip("needs a user to drop privileges from")
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    with lab.egress.enter():
        return run([*drop, *natctl(*words)])


@pytest.mark.parametrize("verb", READERS)
def test_without_privilege(verb: str, lab: Lab, readable_config: Path) -> None:
    refused = unprivileged(lab, verb, "--config", readable_config)
    assert refused.returncode == 4, refused.stderr
    assert "CAP_NET_ADMIN" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert "Traceback" not in refused.stderr


def test_rendering_needs_no_privilege(lab: Lab, readable_config: Path) -> None:
    done = unprivileged(lab, "render", "--config", readable_config)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("# natctl ")


def test_entering_a_namespace_without_privilege(lab: Lab, readable_config: Path) -> None:
    refused = unprivileged(lab, "diff", "--netns", lab.client.name, "--config", readable_config)
    assert refused.returncode == 4, refused.stderr
    assert "CAP_SYS_ADMIN" in refused.stderr


def large_config() -> str:
    """A configuration whose ruleset is larger than any pipe buffer."""
    return 'version = 1\n[[slice]]\nname = "a"\naddress = "198.51.100.10"\npsid = { offset = 12, length = 4, id = 5 }\n'


@pytest.mark.parametrize("verb", [("render",), ("apply", "--dry-run"), ("apply", "-v"), ("apply", "--json")])
def test_a_reader_that_goes_away(verb: tuple[str, ...], lab: Lab) -> None:
    path = lab.config()
    with lab.egress.enter():
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            natctl(*verb, "--config", path), stdout=writing, stderr=subprocess.PIPE, text=True, check=False
        )
        os.close(writing)
    assert done.returncode == 1
    assert done.stderr == "natctl: write output: standard output was closed by its reader\n"


def test_a_reader_that_takes_no_byte_and_one_that_takes_a_few(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "large.toml"
    path.write_text(large_config())
    for count in (0, 100):
        line = f'"$@" | head -c{count} >/dev/null; echo ${{PIPESTATUS[0]}}'
        # Unbuffered, Python itself does not notice that the system took only a part of what it wrote.
        command = ["env", "-u", "PYTHONUNBUFFERED", *natctl("render", "--config", path)]
        done = lab.egress.run(["bash", "-c", line, "bash", *command])
        assert done.stdout == "1\n"
        assert done.stderr == "natctl: write output: standard output was closed by its reader\n"


def test_a_full_disk(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "large.toml"
    path.write_text(large_config())
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            natctl("render", "--config", path), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "natctl: run command: no space left on device\n"


def test_standard_input_that_is_closed_from_the_start() -> None:
    without = ["sh", "-c", 'exec "$@" <&-', "sh"]
    refused = run([*without, *natctl("render", "--config", "-")])
    assert refused.returncode == 2
    assert refused.stderr.startswith("natctl: <stdin>: file: empty: expected")


def test_standard_error_that_is_closed_from_the_start(lab: Lab, state: Path) -> None:
    """As of a job that nobody looks at: what would be told there is not, and that is all."""
    silent = ["sh", "-c", 'exec "$@" <&- 2>&-', "sh"]
    lab.natctl("apply", "--config", lab.config(guard="count"), expect=0)
    for words in (["--drain", "1"], ["--wait", "1"]):
        lab.egress.run([*silent, *natctl("apply", *words, "--config", lab.config())])
    lab.natctl("diff", "--config", lab.config(), expect=0)


def test_standard_output_that_is_closed_from_the_start(lab: Lab) -> None:
    line = '"$@" >&-; echo $? >&2'
    done = lab.egress.run(["bash", "-c", line, "bash", *natctl("render", "--config", lab.config())])
    assert done.stderr == "0\n"


@pytest.mark.parametrize(
    ("error", "needs"),
    [
        ("cache initialization failed: Invalid argument", "CONFIG_NF_TABLES"),
        ("Could not process rule: Message too long", "net.core.wmem_max"),
    ],
)
def test_what_the_system_lacks_is_named(error: str, needs: str, lab: Lab, tmp_path: Path) -> None:
    """A stand-in for the process with libnftables says what it says on a kernel without nf_tables, or with limits."""
    script = tmp_path / "natctl.py"
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import sys\nfrom nat_rewriter.kernel import nft_worker\n"
        f"nft_worker.run = lambda text, options: (-1, b'', {f'Error: {error}'.encode()!r})\n"
        "nft_worker.serve(sys.stdin.buffer, sys.stdout.buffer)\n"
    )
    script.write_text(
        "import pathlib, sys\nfrom nat_rewriter.kernel import nft\n"
        f"nft.WORKER = pathlib.Path({str(worker)!r})\n"
        "from nat_rewriter.cli.main import run\nsys.exit(run(sys.argv[1:]))\n"
    )
    refused = run([sys.executable, str(script), "diff", "--config", str(lab.config())])
    assert refused.returncode == 4
    assert needs in refused.stderr


def test_a_system_without_names_of_protocols(lab: Lab, tmp_path: Path) -> None:
    nothing = tmp_path / "protocols"
    nothing.touch()
    command = f'mount --bind "{nothing}" /etc/protocols && exec "$@"'
    apply = natctl("apply", "--config", lab.config())
    found = lab.egress.run(["unshare", "-m", "sh", "-c", command, "sh", *apply], check=False)
    assert found.returncode == 4
    assert "/etc/protocols (Debian: netbase)" in found.stderr
