"""Plans: from any live table to any wanted one, and nothing to do where they are equal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nat_rewriter.model.ruleset import LiveTable, Ruleset
from nat_rewriter.model.transaction import (
    AddElements,
    CreateTable,
    DeleteElements,
    DeleteObject,
    DeleteTable,
    FlushRules,
    Transaction,
)
from nat_rewriter.plan import ELEMENTS_A_STATEMENT, SetChange, plan, plan_records, plan_removal, set_changes
from nat_rewriter.render.transaction import transaction_text
from nat_rewriter.testing import FakeNft

SETS = ("a", "b", "strays4")
SKELETON = "table inet t {\n" + "".join(f"\tset {name} {{\n\t}}\n" for name in SETS) + "}\n"
OTHER = SKELETON.replace("}\n}", "}\n\tchain old {\n\t}\n}")


def wanted(**elements: dict[str, str]) -> Ruleset:
    return Ruleset("t", SKELETON, {name: elements.get(name, {}) for name in SETS}, frozenset({"strays4"}))


def live(listing: str = SKELETON, **elements: dict[str, str]) -> LiveTable:
    return LiveTable("t", listing, {name: elements.get(name, {}) for name in SETS})


def test_a_table_that_is_not_there_is_created() -> None:
    steps = plan(wanted(a={"1": "x"}), SKELETON, None).steps
    assert steps == (DeleteTable("t"), CreateTable("t", SKELETON), AddElements("t", "a", {"1": "x"}))


def test_equal_tables_need_nothing() -> None:
    transaction = plan(wanted(a={"1": "x"}), SKELETON, live(a={"1": "x"}))
    assert not transaction
    assert transaction == Transaction()
    assert transaction_text(transaction) == ""


def test_what_goes_away_is_deleted_before_what_comes_is_added() -> None:
    """In interval sets the new element may overlap an old one, and a changed one has the same key."""
    have = live(a={"same": "1", "gone": "1", "changed": "1"}, b={"gone": ""})
    want = wanted(a={"same": "1", "changed": "2", "new": "1"}, b={"new": ""})
    assert plan(want, SKELETON, have).steps == (
        DeleteElements("t", "a", ("gone", "changed")),
        DeleteElements("t", "b", ("gone",)),
        AddElements("t", "a", {"changed": "2", "new": "1"}),
        AddElements("t", "b", {"new": ""}),
    )


def test_sets_that_packets_fill_are_left_alone() -> None:
    have = live(strays4={"recorded": ""})
    assert not plan(wanted(), SKELETON, have)
    assert list(set_changes(wanted(), have)) == []


def test_sets_that_stay_keep_what_is_in_them_when_rules_are_made_anew() -> None:
    have = live(OTHER, a={"gone": "", "same": ""}, strays4={"recorded": ""})
    assert plan(wanted(a={"1": "", "same": ""}), SKELETON, have).steps == (
        FlushRules("t"),
        DeleteElements("t", "a", ("gone",)),
        DeleteObject("t", "chain", "old"),
        CreateTable("t", SKELETON),
        AddElements("t", "a", {"1": ""}),
    )


def test_a_set_that_is_made_anew_gets_what_was_recorded() -> None:
    other = SKELETON.replace("\tset strays4 {\n", "\tset strays4 {\n\t\tsize 1\n")
    have = live(other, strays4={"old": ""})
    made = (FlushRules("t"), DeleteObject("t", "set", "strays4"), CreateTable("t", SKELETON))
    assert plan(wanted(), SKELETON, have).steps == (*made, AddElements("t", "strays4", {"old": ""}))
    said = plan(wanted(), SKELETON, have, {"strays4": {"new": ""}, "no_such": {"x": ""}})
    assert said.steps == (*made, AddElements("t", "strays4", {"new": ""}))


def test_a_chain_that_moves_to_another_hook_is_made_anew_after_the_maps_that_lead_to_it() -> None:
    chain = "\tchain c {{\n\t\ttype nat hook postrouting priority {}; policy accept;\n\t}}\n"
    verdicts = "\tmap v {\n\t\ttype ipv4_addr : verdict\n\t}\n"
    before, after = (SKELETON.replace("}\n}", "}\n" + chain.format(number) + "}") for number in (100, 50))
    steps = plan(wanted(), after, live(before.replace("\tset a", verdicts + "\tset a"))).steps
    gone = (DeleteObject("t", "map", "v"), DeleteObject("t", "chain", "c"))
    assert steps == (FlushRules("t"), *gone, CreateTable("t", SKELETON))


def test_a_table_with_other_flags_is_made_anew() -> None:
    have = live(SKELETON.replace("{\n", "{\n\tflags dormant\n", 1), strays4={"recorded": ""})
    made = (DeleteTable("t"), CreateTable("t", SKELETON), AddElements("t", "strays4", {"recorded": ""}))
    assert plan(wanted(), SKELETON, have).steps == made


def test_records_go_where_there_is_a_place_for_them() -> None:
    recorded = {"strays4": {"x": ""}, "strays6": {"y": ""}, "a": {"z": ""}}
    assert plan_records(wanted(), recorded).steps == (AddElements("t", "strays4", {"x": ""}),)


def test_removal() -> None:
    assert plan_removal(None) == Transaction()
    assert plan_removal(live()).steps == (DeleteTable("t"),)


def test_long_lists_are_split() -> None:
    many = {str(number): "" for number in range(ELEMENTS_A_STATEMENT + 1)}
    additions = [step for step in plan(wanted(a=many), SKELETON, None).steps if isinstance(step, AddElements)]
    assert [len(step.elements) for step in additions] == [ELEMENTS_A_STATEMENT, 1]
    assert {key for step in additions for key in step.elements} == set(many)


def test_a_change_tells_what_comes_and_what_goes() -> None:
    assert list(set_changes(wanted(a={"k": "2"}), live(a={"k": "1"}))) == [SetChange("a", {"k": "2"}, {"k": "1"})]


elements = st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from(["", "1", "2"]), max_size=8)


@given(st.fixed_dictionaries({"a": elements, "b": elements}), st.fixed_dictionaries({"a": elements, "b": elements}))
def test_running_the_plan_makes_the_tables_equal(
    have: dict[str, dict[str, str]], want: dict[str, dict[str, str]]
) -> None:
    nft = FakeNft()
    for target in (wanted(**have), wanted(**want)):
        nft.run(plan(target, SKELETON, nft.read("t")))
        found = nft.read("t")
        assert found is not None
        assert found.elements == target.elements
        assert not plan(target, SKELETON, found)
