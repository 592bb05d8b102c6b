"""Errors: one tree, one form of text, one exit code each; and main turns every one into a line."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator

import click
import pytest

from nat_rewriter import errors
from nat_rewriter.cli import main
from nat_rewriter.errors import (
    ConfigError,
    ConnectFailed,
    DecodeError,
    Interrupted,
    KernelError,
    LeaseError,
    LeaseLost,
    LibraryCrashed,
    LockHeld,
    NamespaceMissing,
    NatctlError,
    NetlinkError,
    NftError,
    PermissionNeeded,
    Problem,
    RulesetMoved,
    SliceExhausted,
    StateError,
    UnsupportedFeature,
    UsageError,
    exit_code_of,
)

EXAMPLES: dict[NatctlError, tuple[int, str]] = {
    NatctlError("make lab", "exists already", "x"): (1, "make lab: exists already: 'x'"),
    UsageError("read tuple", "expected ADDRESS:PORT", "a b"): (2, "read tuple: expected ADDRESS:PORT: 'a b'"),
    ConfigError([Problem("f.toml", "slice[0].name", "missing", "expected a name")]): (
        2,
        "f.toml: slice[0].name: missing: expected a name",
    ),
    DecodeError("decode flow", "cut short", 12): (1, "decode flow: cut short: '12'"),
    UnsupportedFeature("nf_tables", "a kernel with CONFIG_NF_TABLES", "none"): (
        4,
        "nf_tables: not supported here: needs a kernel with CONFIG_NF_TABLES, found none",
    ),
    LockHeld("lock table", "held by process 7", "natctl"): (1, "lock table: held by process 7: 'natctl'"),
    NamespaceMissing("egress"): (
        1,
        "enter network namespace: does not exist, expected a name under /run/netns or a path: 'egress'",
    ),
    Interrupted("drain", "interrupted: natctl apply --drain SECONDS goes on"): (
        1,
        "drain: interrupted: natctl apply --drain SECONDS goes on",
    ),
    StateError("write generations", "no space left on device", "/x"): (
        1,
        "write generations: no space left on device: '/x'",
    ),
    LeaseError("resolve destination", "name or service not known", "x.example"): (
        1,
        "resolve destination: name or service not known: 'x.example'",
    ),
    SliceExhausted("acquire lease", "no port of slice ams-1 is free towards", "203.0.113.1:443"): (
        1,
        "acquire lease: no port of slice ams-1 is free towards: '203.0.113.1:443'",
    ),
    LeaseLost("connect", "another local socket has the tuple", "x"): (
        1,
        "connect: another local socket has the tuple: 'x'",
    ),
    KernelError("bind socket", 98, "address already in use"): (1, "bind socket: address already in use"),
    ConnectFailed("connect", 111, "connection refused"): (1, "connect: connection refused"),
    NftError("load ruleset", 2, "No such file or directory"): (1, "load ruleset: No such file or directory"),
    LibraryCrashed("run libnftables", 5, "libnftables was ended by SIGSEGV"): (
        1,
        "run libnftables: libnftables was ended by SIGSEGV",
    ),
    NetlinkError("dump flows", 4, "interrupted"): (1, "dump flows: interrupted"),
    RulesetMoved("load ruleset", 85, "another program has changed a ruleset meanwhile"): (
        1,
        "load ruleset: another program has changed a ruleset meanwhile",
    ),
    PermissionNeeded("load ruleset", "CAP_NET_ADMIN"): (4, "load ruleset: not permitted: needs CAP_NET_ADMIN"),
}


def classes_below(root: type[NatctlError]) -> Iterator[type[NatctlError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from classes_below(child)


def test_every_class_has_an_example() -> None:
    assert {type(error) for error in EXAMPLES} == set(classes_below(NatctlError))


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_text_and_exit_code(error: NatctlError) -> None:
    code, text = EXAMPLES[error]
    assert (exit_code_of(error), str(error)) == (code, text)


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    lines = re.findall(r"^ {4}(?P<indent>[ │├└─]*)(?P<name>\w+) +exit (?P<code>\d)", str(errors.__doc__), re.MULTILINE)
    drawn = [(name, int(code), len(indent) // 4) for indent, name, code in lines]
    depth = len(NatctlError.__mro__)
    real = [(found.__name__, found.exit_code, len(found.__mro__) - depth) for found in classes_below(NatctlError)]
    assert drawn == real


def test_anything_else_counts_as_failed() -> None:
    assert exit_code_of(RuntimeError()) == 1


def run_raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def fail() -> None:
        raise error

    command = click.Command("fail", callback=fail)
    monkeypatch.setattr(main.LazyGroup, "get_command", lambda self, context, name: command)
    return main.run(["fail"])


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_a_command_that_fails_says_so_on_standard_error(
    error: NatctlError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_raising(error, monkeypatch) == error.exit_code
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err == f"natctl: {error}\n"


def test_an_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_raising(KeyboardInterrupt(), monkeypatch) == 1
    assert capsys.readouterr().err.strip() == "natctl: interrupted"


@pytest.mark.parametrize(
    "arguments",
    [["no-such-command"], ["render", "--no-such-option"], ["render", "too", "many"], ["render", "--config"]],
)
def test_words_that_mean_nothing_are_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == 2
    assert "Error: " in capsys.readouterr().err


def test_every_command_has_a_module_help_and_examples(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    for name in main.COMMANDS:
        assert main.run([name, "--help"]) == 0, name
        text = capsys.readouterr().out
        assert text.startswith(f"Usage: natctl {name}"), name
        assert f"natctl {name}" in text.partition("Examples:")[2], name
