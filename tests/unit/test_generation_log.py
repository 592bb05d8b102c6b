"""Generations on disk: kept whole, in order, bounded, and never in the way of the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from configurations import SMALLEST

from nat_rewriter.config import read_policy
from nat_rewriter.controller.generations import (
    KEPT,
    GenerationLog,
    generation_from_object,
    generation_object,
)
from nat_rewriter.controller.record import Record
from nat_rewriter.errors import NatctlError, StateError
from nat_rewriter.kernel import store
from nat_rewriter.model.generations import Configuration, Generation, Outcome, Place
from nat_rewriter.render import ruleset_text

TEXT = SMALLEST.encode()


def configuration(comment: str = "") -> Configuration:
    text = TEXT + comment.encode()
    return Configuration(text, "natctl.toml", read_policy(text))


@pytest.fixture
def log(tmp_path: Path) -> GenerationLog:
    return GenerationLog(Place(tmp_path / "state", "host", "natctl"))


def applied(log: GenerationLog, comment: str = "", action: str = "update") -> Generation:
    generation = log.begin(configuration(comment), action)
    log.keep_ruleset(generation.number, "table inet natctl { }\n")
    return log.finish(generation, Outcome.APPLIED)


def test_a_generation_is_kept_with_all_that_is_known_of_it(log: GenerationLog) -> None:
    begun = log.begin(configuration("# one"), "create")
    assert log.ruleset_text(1) == ruleset_text(configuration().policy)
    log.keep_ruleset(1, "table inet natctl { }\n")
    assert log.list_generations() == [begun]
    assert (begun.number, begun.outcome, begun.reason) == (1, Outcome.UNFINISHED, None)
    assert begun.actor.uid == os.getuid()
    assert begun.actor.pid == os.getpid()
    finished = log.finish(begun, Outcome.FAILED, "load ruleset: refused")
    assert log.get(1) == finished == replace(begun, outcome=Outcome.FAILED, reason="load ruleset: refused")
    assert log.configuration_text(1) == TEXT + b"# one"
    assert log.configuration(1).policy == configuration().policy
    assert log.ruleset_text(1) == "table inet natctl { }\n"


def test_the_one_who_asked_for_root_is_named(log: GenerationLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "ada")
    assert applied(log).actor.user == "ada"


def test_an_object_of_a_generation_reads_back_equal(log: GenerationLog) -> None:
    generation = replace(applied(log), rolled_back_to=7, reason="why")
    assert generation_from_object(generation_object(generation)) == generation


def test_only_the_last_are_kept(log: GenerationLog) -> None:
    for number in range(KEPT + 5):
        applied(log, f"# {number}")
    numbers = [one.number for one in log.list_generations()]
    assert numbers == list(range(6, KEPT + 6))
    assert len(store.list_names(log.place.directory)) == 3 * KEPT


def test_those_that_matter_outlast_any_number_of_failures(log: GenerationLog) -> None:
    applied(log, "# one")
    applied(log, "# two")
    for _ in range(KEPT + 5):
        log.finish(log.begin(configuration(), "update"), Outcome.FAILED, "no")
    current = log.current()
    assert current is not None
    assert current.number == 2
    assert log.rollback_target().number == 1


def test_the_current_generation_is_the_newest_that_stands(log: GenerationLog) -> None:
    assert log.current() is None
    first = applied(log)
    log.finish(log.begin(configuration(), "update"), Outcome.FAILED, "no")
    log.finish(log.begin(configuration(), "update"), Outcome.ROLLED_BACK)
    assert log.current() == first
    waiting = log.finish(log.begin(configuration(), "update"), Outcome.UNCONFIRMED)
    assert log.current() == waiting
    log.finish(log.begin(None, "remove"), Outcome.APPLIED)
    assert log.current() is None


@pytest.mark.parametrize(
    ("newest", "target"),
    [
        (Outcome.APPLIED, 1),
        (Outcome.FAILED, 1),  # it left no trace: 2 is the current one
        (Outcome.ROLLED_BACK, 1),
        (Outcome.UNFINISHED, 2),  # the kernel may have it or not: 2 is the one before
        (Outcome.DRAINING, 2),
        (Outcome.UNCONFIRMED, 2),
    ],
)
def test_going_back_goes_to_the_one_before(newest: Outcome, target: int, log: GenerationLog) -> None:
    applied(log)
    applied(log)
    if newest is not Outcome.APPLIED:
        log.finish(log.begin(configuration(), "update"), newest)
    assert log.rollback_target().number == target


def test_going_back_after_a_removal_brings_back_what_was_removed(log: GenerationLog) -> None:
    applied(log)
    removed = log.finish(log.begin(None, "remove"), Outcome.APPLIED)
    assert log.rollback_target().number == 1
    with pytest.raises(NatctlError, match="natctl remove does that again"):
        log.configuration(removed.number)
    assert log.ruleset_text(removed.number) == ""


def test_nothing_to_go_back_to(log: GenerationLog) -> None:
    applied(log)
    with pytest.raises(NatctlError, match="roll back: no earlier generation is kept"):
        log.rollback_target()
    with pytest.raises(NatctlError, match=r"find generation: none is kept, .*: '99'"):
        log.get(99)


def test_damaged_files_are_passed_over_or_told(log: GenerationLog) -> None:
    for _ in range(3):
        applied(log)
    directory = log.place.directory
    (directory / "1.json").write_text("{")
    (directory / "2.json").write_text('{"number": 2}')
    (directory / "3.toml.gz").write_bytes(b"\x1f\x8b\x08 no gzip at all")
    (directory / "3.nft.gz").write_bytes(b"")
    (directory / "notes.json").write_text("an operator's own")
    assert [one.number for one in log.list_generations()] == [3]
    with pytest.raises(StateError, match="read state: is damaged"):
        log.configuration(3)
    with pytest.raises(StateError, match="read state: is damaged"):
        log.ruleset_text(3)
    assert applied(log).number == 4


def test_the_same_configuration_with_nothing_to_do_is_no_new_generation(log: GenerationLog) -> None:
    for comment in ("", "", "# a comment more", "# a comment more"):
        record = Record(log, pytest.fail)
        record.begin(configuration(comment), "none")
        record.finish(Outcome.APPLIED)
    assert len(log.list_generations()) == 2
    record = Record(log, pytest.fail)
    record.begin(configuration("# a comment more"), "update")  # drift was mended
    assert len(log.list_generations()) == 3


def test_without_a_place_to_keep_it_that_is_said_and_the_work_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    warnings: list[str] = []
    record = Record(GenerationLog(Place(tmp_path / "file", "host", "natctl")), warnings.append)
    record.begin(configuration(), "create")
    record.finish(Outcome.APPLIED)
    assert record.generation is None
    assert len(warnings) == 1
    assert "this generation is not kept: write state: Not a directory" in warnings[0]


def test_a_file_is_old_or_new_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    store.write_file(path, b"0" * 100_000)
    script = (
        "import sys\nfrom pathlib import Path\nfrom nat_rewriter.kernel.store import write_file\nnumber = 0\n"
        "while True:\n    number += 1\n    write_file(Path(sys.argv[1]), str(number % 10).encode() * 100_000)\n"
        "    print(number, flush=True)"
    )
    for round_number in range(5):
        with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(3 + round_number):
                writer.stdout.readline()
            writer.kill()
        content = path.read_bytes()
        assert len(content) == 100_000
        assert len(set(content)) == 1
    store.write_file(path, b"by another")
    assert path.read_bytes() == b"by another"


def test_only_their_owner_can_read_what_is_kept(log: GenerationLog) -> None:
    applied(log)
    modes = {path.stat().st_mode & 0o777 for path in log.place.directory.iterdir()}
    assert modes == {0o600}
    assert log.place.directory.stat().st_mode & 0o777 == 0o700


def test_the_ruleset_is_kept_beside_the_change(log: GenerationLog) -> None:
    record = Record(log, pytest.fail)
    record.begin(configuration(), "create")
    with record.keeping_ruleset(lambda: "table inet natctl { }\n"):
        pass
    assert log.ruleset_text(1) == "table inet natctl { }\n"


def test_a_ruleset_that_cannot_be_kept_is_told_and_made_again(log: GenerationLog) -> None:
    warnings: list[str] = []
    record = Record(log, warnings.append)
    record.begin(configuration(), "create")
    (log.place.directory / "1.nft.gz").mkdir()  # in its way
    with record.keeping_ruleset(str):
        pass
    assert len(warnings) == 1
    assert "the ruleset of generation 1 is not kept: write state: Is a directory" in warnings[0]
    (log.place.directory / "1.nft.gz").rmdir()
    assert log.ruleset_text(1) == ruleset_text(configuration().policy)


def test_a_generation_that_is_not_kept_has_no_ruleset(log: GenerationLog) -> None:
    with Record(log, pytest.fail).keeping_ruleset(lambda: pytest.fail("nobody asks for it")):
        pass
    assert store.list_names(log.place.directory) == []
