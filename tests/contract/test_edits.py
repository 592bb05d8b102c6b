"""An edit of the configuration in force is applied by itself, and the table is what the whole configuration means."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from nat_rewriter.config import read_policy
from nat_rewriter.controller import intent
from nat_rewriter.controller.apply import apply_configuration
from nat_rewriter.controller.edit import Edited, Editor
from nat_rewriter.controller.generations import MOST_EDITS, GenerationLog
from nat_rewriter.errors import NatctlError, RulesetMoved
from nat_rewriter.kernel.nft import KernelNft
from nat_rewriter.kernel.nft_batches import LiveElements
from nat_rewriter.model.generations import Configuration, Outcome, Place
from nat_rewriter.model.transaction import AddElements, Transaction

ADDRESSES = {4: "198.51.100.{}", 6: "2001:db8::{}"}
CLIENTS = {4: "10.0.0.{}", 6: "fd00::{}"}
Apply = Callable[[bytes], Edited | None]


def text_of(family: int = 4, coexist: str = "confine", **widths: int) -> bytes:
    """Return slices, eight on an address, each with a client of its own; ``s3=1000`` makes one narrower."""
    tables = [f'version = 1\n[controller]\ncoexist = "{coexist}"']
    for number in range(24):
        address, first = ADDRESSES[family].format(1 + number // 8), 1024 * (1 + number % 8)
        last = first + widths.get(f"s{number}", 1024) - 1
        tables.append(f'[[slice]]\nname = "s{number}"\naddress = "{address}"\nports = ["{first}-{last}"]')
    for number in range(24):
        client = CLIENTS[family].format(1 + number)
        tables.append(f'[[snat]]\nname = "c{number}"\nsource = ["{client}"]\nslices = ["s{number}"]')
    return "\n".join(tables).encode()


@pytest.fixture
def log(namespace: str, tmp_path: Path) -> GenerationLog:
    return GenerationLog(Place(tmp_path, "host", "natctl"))


def apply_whole(text: bytes, log: GenerationLog) -> None:
    apply_configuration(Configuration(text, "natctl.toml", read_policy(text)), log, pytest.fail)


def edit(text: bytes, log: GenerationLog) -> Edited | None:
    with closing(Editor(log, pytest.fail)) as editor:
        edited = editor.apply(text, "natctl.toml")
        editor.settle()
    return edited


def assert_in_kernel(text: bytes) -> None:
    with KernelNft() as other:  # one that has kept nothing
        change = intent.read_change(read_policy(text), other)
    assert not change.sets
    assert not change.rule_lines()


@pytest.mark.parametrize("coexist", ["off", "confine", "refuse"])
def test_edits_one_after_another(coexist: str, log: GenerationLog) -> None:
    apply_whole(text_of(coexist=coexist), log)
    widths: dict[str, int] = {}
    for number, width in ((3, 1000), (0, 1), (23, 512), (3, 1024), (3, 77), (12, 999)):
        widths[f"s{number}"] = width
        text = text_of(coexist=coexist, **widths)
        edited = edit(text, log)
        assert edited is not None
        assert edited.generation is not None
        assert edited.generation.outcome is Outcome.APPLIED
        assert log.configuration_text(edited.generation.number) == text
        assert_in_kernel(text)
    assert edit(text, log) is not None
    assert len(log.list_generations()) == 7


def test_an_ipv6_slice_whose_ports_others_have(log: GenerationLog) -> None:
    apply_whole(text_of(6), log)
    slice_3 = b'address = "2001:db8::1"\nports = ["4096-5119"]'
    for to in (
        b'address = "2001:db8::9"\nports = ["4096-5119"]',
        b'address = "2001:db8::9"\nports = ["2048-3071"]',
        slice_3 + b'\n[[slice]]\nname = "new"\naddress = "2001:db8::9"\nports = ["8192-9215"]',
        slice_3,
    ):
        text = text_of(6).replace(slice_3, to, 1)
        assert edit(text, log) is not None
        assert_in_kernel(text)


def test_a_process_that_stays_goes_on_from_what_it_knows(log: GenerationLog) -> None:
    apply_whole(text_of(), log)
    with closing(Editor(log, pytest.fail)) as editor:
        for widths in ({"s3": 1000}, {"s3": 1000, "s4": 7}, {"s4": 512}, {"s4": 512, "s23": 1}):
            assert editor.apply(text_of(**widths), "natctl.toml") is not None
            assert editor.in_force is not None
            editor.settle()
            editor.prepare()
            assert_in_kernel(text_of(**widths))
        subprocess.run(["nft", "add table inet elses"], check=True)
        assert editor.apply(text_of(), "natctl.toml") is None
        apply_whole(text_of(), log)
        assert editor.apply(text_of(s1=9), "natctl.toml") is not None
    assert_in_kernel(text_of(s1=9))


def test_a_guard_that_was_not_settled_is_settled_before_the_next_edit(log: GenerationLog) -> None:
    apply_whole(text_of(), log)
    with closing(Editor(log, pytest.fail)) as editor:
        for width in (1000, 999):
            assert editor.apply(text_of(s3=width), "natctl.toml") is not None
    with closing(Editor(log, pytest.fail)) as another:  # as if the first had been killed
        assert another.apply(text_of(s3=998), "natctl.toml") is None


def test_only_the_elements_of_the_slice_are_sent(log: GenerationLog) -> None:
    apply_whole(text_of(), log)
    edited = edit(text_of(s11=1000), log)
    assert edited is not None
    keys = {key for one in edited.sets for key in (*one.added, *one.removed)}
    assert all(key == "10.0.0.12" or key.endswith(" . 198.51.100.2") for key in keys)
    assert 0 < len(keys) < 30


def test_rules_are_left_to_the_whole(log: GenerationLog) -> None:
    apply_whole(text_of(6), log)
    assert edit(text_of(6, s3=1000), log) is None  # an IPv6 range of its own is a chain
    apply_whole(text_of(), log)
    assert edit(text_of(coexist="off"), log) is None
    assert edit(text_of() + b'\n[[snat]]\nname = "x"\niifname = "in0"\nslices = ["s3"]\n', log) is None
    assert [one.outcome for one in log.list_generations()] == [Outcome.APPLIED] * 2


def test_what_anybody_else_has_changed_is_read_whole(log: GenerationLog) -> None:
    apply_whole(text_of(), log)
    subprocess.run(["nft", "delete element inet natctl soft4 { 198.51.100.3 }"], check=True)
    assert edit(text_of(s2=1000), log) is None
    apply_whole(text_of(s2=1000), log)
    subprocess.run(["nft", "add table inet other"], check=True)
    assert edit(text_of(s2=999), log) is None
    apply_whole(text_of(s2=999), log)
    assert edit(text_of(s2=998), log) is not None
    assert_in_kernel(text_of(s2=998))


def test_a_note_of_another_namespace_or_table_says_nothing(log: GenerationLog) -> None:
    assert edit(text_of(), log) is None
    apply_whole(text_of(), log)
    note = log.place.directory / "in-force.json"
    told = note.read_text()
    for damaged in ("", "{", "[]", told.replace('"namespace": "', '"namespace": "0'), told.replace("0.1.0", "0.0.9")):
        note.write_text(damaged)
        assert edit(text_of(s2=1000), log) is None
    note.write_text(told)
    assert edit(text_of(s2=1000), log) is not None


def test_a_batch_is_refused_on_another_ruleset(log: GenerationLog) -> None:
    apply_whole(text_of(), log)
    with closing(LiveElements()) as live:
        layouts = {name: one for name, one in live.layouts("natctl").items() if one}
        late = Transaction((AddElements("natctl", "soft4", {"192.0.2.1": ""}),))
        with pytest.raises(RulesetMoved):
            live.change(late, layouts, live.generation() - 1)
        twice = Transaction((AddElements("natctl", "soft4", {"192.0.2.1": "", "198.51.100.1": ""}),))
        with pytest.raises(NatctlError, match="load ruleset"):
            live.change(twice, layouts, live.generation())
    assert_in_kernel(text_of())


def test_an_edit_that_is_refused_is_kept_as_failed(log: GenerationLog, monkeypatch: pytest.MonkeyPatch) -> None:
    apply_whole(text_of(), log)
    monkeypatch.setattr(LiveElements, "change", lambda live, *_: (_ for _ in ()).throw(NatctlError("x", "y")))
    with pytest.raises(NatctlError):
        edit(text_of(s2=1000), log)
    assert log.list_generations()[-1].outcome is Outcome.FAILED
    assert_in_kernel(text_of())


def test_a_configuration_is_kept_whole_now_and_then(log: GenerationLog) -> None:
    apply_whole(text_of(), log)
    for number in range(MOST_EDITS + 3):
        text = text_of(s5=1000 - number)
        assert edit(text, log) is not None
    names = [path.name for path in log.place.directory.iterdir()]
    assert sum(name.endswith(".toml.gz") for name in names) == 2
    for generation in log.list_generations()[1:]:
        assert log.configuration_text(generation.number) == text_of(s5=1002 - generation.number)
    subprocess.run(["nft", "-f", "-"], input=log.ruleset_text(generation.number).encode(), check=True)
    assert_in_kernel(text)
