"""Generations as an operator sees them: the log, going back, and what is kept apart."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import sys
from pathlib import Path

import pytest
from operating import NATCTL, generations, lasting, listing, outcomes

from nat_rewriter.kernel.netns_names import HOST, name_of_current
from netns_lab import Lab


def test_every_generation_is_listed_with_who_and_how(lab: Lab) -> None:
    assert lab.natctl("log", "--table", "natctl", expect=0).stdout == ""
    first, second = lab.config(), lab.config(guard="count")
    lab.natctl("apply", "--config", first, expect=0)
    lab.natctl("apply", "--config", first, expect=0)  # nothing to do: no new generation
    lab.natctl("apply", "--config", second, expect=0)
    lab.natctl("remove", "--config", second, expect=0)
    lab.natctl("remove", "--config", second, expect=0)  # was not there
    assert outcomes(lab) == [(1, "create", "applied"), (2, "rebuild", "applied"), (3, "remove", "applied")]
    newest = generations(lab)[1]
    assert newest["actor"]["uid"] == os.getuid()
    assert str(second) in newest["actor"]["command"]
    assert (newest["table"], newest["netns"]) == ("natctl", f"netns-{lab.egress.name}")
    lines = lab.natctl("log", "-n", "2", expect=0).stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["2", "3"]


def test_a_generation_is_shown_as_it_was(lab: Lab) -> None:
    path = lab.config()
    lab.natctl("apply", "--config", path, expect=0)
    before = lasting(lab)
    assert lab.natctl("log", "1", "--configuration", expect=0).stdout == path.read_text()
    shown = lab.natctl("log", "1", expect=0).stdout
    assert f"generation: 1 of table inet natctl in netns-{lab.egress.name}\n" in shown
    assert shown.endswith(path.read_text())
    ruleset = lab.natctl("log", "1", "--ruleset", expect=0).stdout
    lab.natctl("remove", "--config", path, expect=0)
    lab.egress.nft(ruleset)
    assert lasting(lab) == before
    found = lab.natctl("log", "1", "--json", expect=0).json()
    assert (found["configuration"], found["ruleset"]) == (path.read_text(), ruleset)
    assert "find generation: none is kept" in lab.natctl("log", "99", expect=1).stderr
    assert lab.natctl("log", "--ruleset").exit_code == 2


def test_on_a_terminal_the_log_is_a_table(lab: Lab) -> None:
    lab.natctl("apply", "--config", lab.config(), expect=0)
    ours, theirs = pty.openpty()
    process = lab.egress.popen([*NATCTL, "log"], stdout=theirs, stderr=theirs, stdin=theirs)
    assert process.wait(20) == 0
    os.close(theirs)
    shown = re.sub(r"\x1b\[\d*m", "", os.read(ours, 65536).decode())
    os.close(ours)
    assert shown.split()[:3] == ["generation", "time", "action"]
    assert "create" in shown


def test_going_back_applies_an_earlier_generation_as_a_new_one(lab: Lab) -> None:
    first, second, third = lab.config(), lab.config(guard="count"), lab.config(coexist="off")
    lab.natctl("apply", "--config", first, expect=0)
    before = lasting(lab)
    lab.natctl("apply", "--config", second, expect=0)
    lab.natctl("apply", "--config", third, expect=0)
    lab.natctl("apply", "--rollback", expect=0)
    assert lab.natctl("diff", "--config", second).exit_code == 0
    lab.natctl("apply", "--rollback", "1", expect=0)
    assert lasting(lab) == before
    assert [one.get("rolled_back_to") for one in generations(lab)] == [None, None, None, 2, 1]
    assert "rebuild, back to 1" in lab.natctl("log", "5", expect=0).stdout
    # Back from the way back.
    lab.natctl("apply", "--rollback", expect=0)
    assert lab.natctl("diff", "--config", second).exit_code == 0


def test_going_back_needs_no_configuration_that_can_be_read(lab: Lab, tmp_path: Path) -> None:
    first = lab.config()
    lab.natctl("apply", "--config", first, expect=0)
    before = lasting(lab)
    lab.natctl("apply", "--config", lab.config(guard="count"), expect=0)
    broken = tmp_path / "broken.toml"
    broken.write_text("version = ")
    assert lab.natctl("apply", "--config", broken).exit_code == 2
    lab.natctl("apply", "--config", broken, "--rollback", expect=0)
    assert lasting(lab) == before
    lab.natctl("log", "--config", tmp_path / "none.toml", expect=0)


@pytest.mark.parametrize(("number", "exit_code"), [("99", 1), ("one", 2), ("-1", 2), ("0", 1)])
def test_going_back_to_what_is_not_there_is_refused(number: str, exit_code: int, lab: Lab) -> None:
    lab.natctl("apply", "--config", lab.config(), expect=0)
    before = lasting(lab)
    assert lab.natctl("apply", "--rollback", number).exit_code == exit_code
    assert lab.natctl("apply", "--rollback").exit_code == 1  # there is only one
    assert lasting(lab) == before


def test_an_apply_that_the_kernel_refuses_is_kept_as_failed(lab: Lab) -> None:
    path = lab.config()
    lab.natctl("apply", "--config", path, expect=0)
    before = lasting(lab)
    refuse = "import sys\nfrom nat_rewriter.kernel.nft import KernelNft\nfrom nat_rewriter.errors import NftError\n"
    refuse += "def run(self, transaction): raise NftError('load ruleset', 22, 'refused as asked')\n"
    refuse += "KernelNft.run = run\nfrom nat_rewriter.cli.main import run as main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", refuse, "apply", "--config", str(lab.config(guard="count"))]
    assert lab.egress.run(command, check=False).returncode == 1
    assert lasting(lab) == before
    assert outcomes(lab) == [(1, "create", "applied"), (2, "rebuild", "failed")]
    assert generations(lab)[1]["reason"] == "load ruleset: refused as asked"
    assert lab.natctl("diff", "--config", path).exit_code == 0


def test_a_state_directory_that_cannot_be_written_is_a_warning(lab: Lab, state: Path) -> None:
    state.write_text("a file where the directory should be")
    path = lab.config()
    done = lab.natctl("apply", "--config", path, expect=0)
    assert done.stderr.startswith("natctl: warning: this generation is not kept: write state: Not a directory")
    assert len(done.stderr.splitlines()) == 1
    lab.natctl("diff", "--config", path, expect=0)
    lab.natctl("remove", "--config", path, expect=0)
    assert listing(lab) == ""
    assert lab.natctl("apply", "--config", path, "--rollback").exit_code == 1


def test_the_option_goes_before_the_variable(lab: Lab, state: Path, tmp_path: Path) -> None:
    lab.natctl("apply", "--config", lab.config(), "--state", tmp_path / "other", expect=0)
    assert not state.exists()
    assert lab.natctl("log", "--state", tmp_path / "other", expect=0).stdout.startswith("1\t")


def test_tables_and_namespaces_have_generations_of_their_own(lab: Lab, state: Path) -> None:
    path = lab.config()
    other = path.with_name("other.toml")
    other.write_text(path.read_text().replace("[controller]", '[controller]\ntable = "edge"'))
    lab.natctl("apply", "--config", path, expect=0)
    lab.natctl("apply", "--config", other, expect=0)
    lab.natctl("apply", "--config", other, "--netns", lab.upstream.name, expect=0)
    kept = sorted(str(one.relative_to(state)) for one in state.rglob("1.json"))
    names = (f"netns-{lab.egress.name}", f"netns-{lab.upstream.name}")
    assert kept == [f"{names[0]}/edge/1.json", f"{names[0]}/natctl/1.json", f"{names[1]}/edge/1.json"]
    # With two tables here, the configuration or --table says which.
    for arguments in (["--config", other], ["--table", "edge"]):
        (found,) = lab.natctl("log", "--json", *arguments, expect=0).lines()
        assert found["table"] == "edge"
    assert lab.natctl("log", "--config", "/nonexistent").exit_code == 2


def test_a_rollback_to_nothing_applies_nothing(lab: Lab) -> None:
    """A script whose variable is empty."""
    lab.natctl("apply", "--config", lab.config(), expect=0)
    other = lab.config(guard="count")
    refused = lab.natctl("apply", "--rollback=", "--config", other, expect=2)
    assert "expected the number of a generation" in refused.stderr
    lab.natctl("diff", "--config", other, expect=3)


def test_what_namespaces_are_called(lab: Lab) -> None:
    with lab.egress.enter():
        assert name_of_current() == f"netns-{lab.egress.name}"
    with contextlib.suppress(PermissionError):  # in a container, process 1 may not be ours to look at
        ours, first = os.stat("/proc/self/ns/net"), os.stat("/proc/1/ns/net")
        assert (name_of_current() == HOST) is os.path.samestat(ours, first)
    script = "from nat_rewriter.kernel.netns_names import name_of_current; print(name_of_current())"
    names = {lab.egress.run(["unshare", "-n", sys.executable, "-c", script]).stdout.strip() for _ in range(2)}
    assert len(names) == 2, names  # the inode may be the same one again
    assert all(name.startswith("net-") for name in names)


def test_files_are_for_people_too(lab: Lab, state: Path) -> None:
    path = lab.config()
    lab.natctl("apply", "--config", path, expect=0)
    directory = state / f"netns-{lab.egress.name}" / "natctl"
    assert lab.egress.run(["zcat", directory / "1.toml.gz"]).stdout == path.read_text()
    assert json.loads((directory / "1.json").read_text())["outcome"] == "applied"
