"""What is packaged beside the program: manual pages, completions and units, judged by the tools that read them."""

from __future__ import annotations

import configparser
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from nat_rewriter.cli.main import COMMANDS, natctl

Completes = Callable[[str, Path, dict[str, str]], list[str]]

ROOT = Path(__file__).parents[2]
PACKAGING = ROOT / "packaging"
UNITS = sorted((PACKAGING / "systemd").glob("*.service"))
MOST_EXPOSED = 3.0


def tool(name: str, package: str) -> str:
    """Return the path of a program, or skip."""
    found = shutil.which(name)
    if not found:
        pytest.skip(f"needs {name} (Debian: {package})")
    return found


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("man")
    run(sys.executable, PACKAGING / "manpages.py", directory)
    return {path.name: path for path in directory.iterdir()}


def test_each_command_has_a_page(pages: dict[str, Path]) -> None:
    assert pages.keys() == {"natctl.1", "natctl.toml.5", *(f"natctl-{name}.1" for name in COMMANDS)}


def test_pages_are_set_without_a_warning(pages: dict[str, Path]) -> None:
    groff = tool("groff", "groff-base")
    for name, path in pages.items():
        done = run(groff, "-ww", "-man", "-Kutf8", "-Tutf8", "-z", path)
        assert not done.stderr, f"{name}: {done.stderr}"


def shown(page: Path) -> str:
    """Return a page as a reader sees it, on a very wide terminal."""
    groff = tool("groff", "groff-base")
    return run(groff, "-man", "-Kutf8", "-Tascii", "-P-cbou", "-rLL=400n", "-rIN=4n", "-rHY=0", page).stdout


def test_a_page_has_all_that_the_help_has(pages: dict[str, Path]) -> None:
    help_text = run(sys.executable, "-m", "nat_rewriter", "apply", "--help", cwd=ROOT).stdout
    page = shown(pages["natctl-apply.1"])
    for word in (*help_text.split(), "SYNOPSIS", "EXIT STATUS"):
        if word not in ("Usage:", "Options:", "Examples:"):
            assert word in page, word


def command_tree(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """Yield a command and all below it, each with its context."""
    yield command, context
    if not isinstance(command, click.Group):
        return
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner
        yield from command_tree(inner, click.Context(inner, info_name=name, parent=context))


TREE = list(command_tree(natctl, click.Context(natctl, info_name="natctl", **natctl.context_settings)))


def long_options(command: click.Command, context: click.Context) -> set[str]:
    found = (word for param in command.get_params(context) for word in (*param.opts, *param.secondary_opts))
    return {word for word in found if word.startswith("--")}


def test_the_pages_have_every_command_and_option(pages: dict[str, Path]) -> None:
    seen = {name: shown(page) for name, page in pages.items()}
    for command, context in TREE:
        page = seen[f"{'-'.join(context.command_path.split()[:2])}.1"]
        missing = [word for word in (context.command_path, *long_options(command, context)) if word not in page]
        assert not missing, context.command_path


def test_shells_are_offered_every_command_and_option() -> None:
    """What the three shells ask natctl for, and what click answers."""
    completion = ShellComplete(natctl, {}, "natctl", "_NATCTL_COMPLETE")
    for command, context in TREE:
        words = context.command_path.split()[1:]
        offered = {item.value for item in completion.get_completions(words, "--")}
        assert offered >= long_options(command, context), context.command_path
        if isinstance(command, click.Group):
            assert {item.value for item in completion.get_completions(words, "")} == {*command.list_commands(context)}


def test_the_page_of_the_configuration_has_every_key_and_value_of_the_reference(pages: dict[str, Path]) -> None:
    page = shown(pages["natctl.toml.5"])
    reference = (ROOT / "docs/reference.toml").read_text().replace("\u2026", "...")
    for line in reference.splitlines():
        if line and not line.startswith("# "):
            assert line.strip() in page, line


def test_the_shipped_configuration_is_toml_that_lacks_only_slices() -> None:
    text = (PACKAGING / "natctl.toml").read_text()
    assert tomllib.loads(text) == {"version": 1}
    without = [line[1:] if line.startswith("#") and not line.startswith("# ") else line for line in text.splitlines()]
    rendered = subprocess.run(
        [sys.executable, "-m", "nat_rewriter", "render", "--config", "-"],
        input="\n".join(without), capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert rendered.returncode == 0, rendered.stderr


@pytest.fixture(scope="module")
def completions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("completions")
    run(sys.executable, PACKAGING / "completions.py", directory)
    return directory


@pytest.fixture
def with_natctl(tmp_path: Path) -> dict[str, str]:
    """An environment in which natctl is a program on the path."""
    program = tmp_path / "natctl"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m nat_rewriter "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "dumb"}


def bash_completes(line: str, completions: Path, environment: dict[str, str]) -> list[str]:
    words = line.split(" ")
    script = (
        f"source {completions / 'natctl'}; COMP_WORDS=({' '.join(words[:-1])} '{words[-1]}'); "
        f"COMP_CWORD={len(words) - 1}; eval \"$(complete -p natctl | sed -E 's/.*-F ([^ ]+) .*/\\1/') natctl\"; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    return run("bash", "--norc", "-c", script, env=environment).stdout.split()


def zsh_completes(line: str, completions: Path, environment: dict[str, str]) -> list[str]:
    """The last word of a line as zsh completes it; for what it offers it needs a terminal, and keys."""
    zsh = tool("zsh", "zsh")
    setup = f"bindkey -e; fpath=({completions} $fpath); autoload -Uz compinit; compinit -u -D"
    child, terminal = pty.fork()
    if child == 0:
        os.execve(zsh, ["zsh", "-f", "-i"], environment)
    try:
        # Then, at the start and end of the completed line, what prints it.
        os.write(terminal, f"{setup}\n{line}\t\x01print -r -- :\x05:\n".encode())
        printed = read_until(terminal, re.compile(rb"^:(natctl [^\r\n]*?) ?:\r?$", re.MULTILINE))
        return printed.decode().split()[-1:]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(terminal)


def read_until(terminal: int, wanted: re.Pattern[bytes]) -> bytes:
    """Return the first group of what is wanted, once a terminal has shown it."""
    seen, deadline = b"", time.monotonic() + 60
    while not (found := wanted.search(seen)):
        assert select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0], seen
        seen += os.read(terminal, 4096)
    return found[1]


def fish_completes(line: str, completions: Path, environment: dict[str, str]) -> list[str]:
    fish = tool("fish", "fish")
    script = f"source {completions / 'natctl.fish'}; complete -C '{line}'"
    return [
        offer.split("\t")[0] for offer in run(fish, "--no-config", "-c", script, env=environment).stdout.splitlines()
    ]


SHELLS = {"bash": bash_completes, "zsh": zsh_completes, "fish": fish_completes}
COMPLETED = {
    "natctl rend": "render",
    "natctl apply --dry": "--dry-run",
    "natctl pool acc": "accept",
    "natctl pool export --format n": "nft",
}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("line", COMPLETED)
def test_a_shell_completes(line: str, shell: str, completions: Path, with_natctl: dict[str, str]) -> None:
    assert SHELLS[shell](line, completions, with_natctl) == [COMPLETED[line]]


@pytest.mark.parametrize("completes", [bash_completes, fish_completes])
def test_a_shell_offers_all_commands(completes: Completes, completions: Path, with_natctl: dict[str, str]) -> None:
    assert set(completes("natctl ", completions, with_natctl)) >= set(COMMANDS)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_unit_is_sound_and_little_exposed(unit: Path, tmp_path: Path) -> None:
    analyze = tool("systemd-analyze", "systemd")
    # The program is where this test has it, not where the package would put it.
    here = tmp_path / unit.name
    here.write_text(unit.read_text().replace("/usr/bin/natctl", sys.executable))
    verified = run(analyze, "verify", "--man=no", here)
    assert unit.name not in verified.stderr, verified.stderr
    told = run(analyze, "security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSED * 10:g}", here).stdout
    assert float(told.rsplit("service: ", 1)[1].split()[0]) < MOST_EXPOSED


def test_units_run_what_natctl_understands() -> None:
    assert {path.stem for path in UNITS} == {"natctl", "natctl-agent", "natctl-watch"}
    for path in UNITS:
        unit = configparser.RawConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment, method-assign]
        unit.read(path)
        program, *words = unit["Service"]["ExecStart"].split()
        assert program == "/usr/bin/natctl"
        run(sys.executable, "-m", "nat_rewriter", *words, "--help", cwd=ROOT)
