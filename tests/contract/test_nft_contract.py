"""What natctl relies on in nftables, asked of the fake and of the real one alike."""

from __future__ import annotations

from typing import get_args

import pytest

from nat_rewriter.config import read_policy
from nat_rewriter.controller import intent
from nat_rewriter.errors import NftError
from nat_rewriter.kernel.nft import Nft
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.ruleset import LiveTable
from nat_rewriter.model.transaction import (
    AddElements,
    CreateTable,
    DeleteElements,
    DeleteObject,
    DeleteTable,
    FlushRules,
    Step,
    Transaction,
)
from nat_rewriter.plan import ELEMENTS_A_STATEMENT, plan
from nat_rewriter.render import render
from nat_rewriter.render.transaction import transaction_text

SKELETON = """table inet t {
	set s {
		type ipv4_addr
	}

	map m {
		type ipv4_addr : ipv4_addr
	}

	chain c {
		ip saddr @s accept
	}
}
"""
STRAY = "tcp . 198.51.100.10 . 8999 . 203.0.113.1 . 443"


def policy_of(*ports: str, coexist: str = "confine", guard: str = "drop", to: str = "10.0.0.2") -> Policy:
    lines = f"""
        version = 1
        [controller]
        coexist = "{coexist}"
        guard = "{guard}"
        [[slice]]
        name = "ams-1"
        address = "198.51.100.10"
        ports = [{", ".join(f'"{each}"' for each in ports or ("9000-9009",))}]
        [[snat]]
        name = "clients"
        source = ["10.0.0.0/24"]
        slices = ["ams-1"]
        spread = "client"
        [[dnat]]
        name = "inbound"
        slice = "ams-1"
        to = "{to}"
        """
    return read_policy(lines.encode())


def made(nft: Nft) -> Nft:
    """Return the nftables with the small table in it: one element in the set, one in the map."""
    steps: tuple[Step, ...] = (
        CreateTable("t", SKELETON),
        AddElements("t", "s", {"10.0.0.1": ""}),
        AddElements("t", "m", {"10.0.0.1": "10.0.0.2"}),
    )
    nft.run(Transaction(steps))
    return nft


def read(nft: Nft, table: str = "t") -> LiveTable:
    found = nft.read(table)
    assert found is not None
    return found


def run(nft: Nft, *steps: Step) -> None:
    nft.run(Transaction(steps))


def test_a_table_that_is_not_there_reads_as_none(nft: Nft) -> None:
    assert nft.read("natctl") is None


def test_a_table_reads_back_as_it_was_written(nft: Nft) -> None:
    live = read(made(nft))
    assert live.elements == {"s": {"10.0.0.1": ""}, "m": {"10.0.0.1": "10.0.0.2"}}
    assert live.listing == nft.listing_of("t", SKELETON)


def test_an_empty_transaction_does_nothing(nft: Nft) -> None:
    nft.check(Transaction())
    nft.run(Transaction())
    assert nft.read("t") is None


def test_checking_changes_nothing(nft: Nft) -> None:
    nft.check(Transaction((CreateTable("t", SKELETON),)))
    assert nft.read("t") is None
    before = read(made(nft))
    nft.check(Transaction((AddElements("t", "s", {"10.0.0.9": ""}), DeleteElements("t", "m", ("10.0.0.1",)))))
    nft.check(Transaction((DeleteTable("t"),)))
    assert read(nft) == before


def test_elements_come_and_go(nft: Nft) -> None:
    run(made(nft), AddElements("t", "s", {"10.0.0.2": "", "10.0.0.3": ""}), DeleteElements("t", "s", ("10.0.0.1",)))
    assert read(nft).elements["s"] == {"10.0.0.2": "", "10.0.0.3": ""}


def test_data_changes_by_taking_the_element_out_and_putting_it_back(nft: Nft) -> None:
    run(made(nft), DeleteElements("t", "m", ("10.0.0.1",)), AddElements("t", "m", {"10.0.0.1": "10.0.0.9"}))
    assert read(nft).elements["m"] == {"10.0.0.1": "10.0.0.9"}


def test_adding_what_is_there_is_no_error(nft: Nft) -> None:
    before = read(made(nft))
    run(nft, AddElements("t", "s", {"10.0.0.1": ""}), AddElements("t", "m", {"10.0.0.1": "10.0.0.2"}))
    assert read(nft) == before


REFUSED = {
    "delete a missing element": DeleteElements("t", "s", ("10.0.0.7",)),
    "delete a missing element among others": DeleteElements("t", "s", ("10.0.0.1", "10.0.0.7")),
    "delete a missing key of a map": DeleteElements("t", "m", ("10.0.0.7",)),
    "delete from a missing set": DeleteElements("t", "no_such", ("10.0.0.1",)),
    "delete from a missing table": DeleteElements("no_such", "s", ("10.0.0.1",)),
    "add to a missing set": AddElements("t", "no_such", {"10.0.0.1": ""}),
    "add to a missing table": AddElements("no_such", "s", {"10.0.0.1": ""}),
    "give a key other data": AddElements("t", "m", {"10.0.0.1": "10.0.0.9"}),
}


@pytest.mark.parametrize("step", REFUSED.values(), ids=REFUSED)
def test_a_refused_step_refuses_the_whole_transaction(nft: Nft, step: Step) -> None:
    before = read(made(nft))
    transaction = Transaction((AddElements("t", "s", {"10.0.0.8": ""}), step, AddElements("t", "s", {"10.0.0.9": ""})))
    with pytest.raises(NftError, match=r"^check ruleset: |^load ruleset: "):
        nft.check(transaction)
    with pytest.raises(NftError, match=r"^load ruleset: "):
        nft.run(transaction)
    assert read(nft) == before


def test_a_table_that_is_not_there_can_be_deleted(nft: Nft) -> None:
    run(nft, DeleteTable("t"))
    run(made(nft), DeleteTable("t"))
    assert nft.read("t") is None


def test_a_table_is_replaced_in_one_transaction(nft: Nft) -> None:
    run(made(nft), DeleteTable("t"), CreateTable("t", SKELETON), AddElements("t", "s", {"10.0.0.5": ""}))
    assert read(nft).elements == {"s": {"10.0.0.5": ""}, "m": {}}


EVERY_STEP: dict[type, Step] = {
    DeleteTable: DeleteTable("t"),
    CreateTable: CreateTable("other", SKELETON.replace("inet t", "inet other")),
    FlushRules: FlushRules("t"),
    DeleteObject: DeleteObject("t", "map", "m"),
    AddElements: AddElements("t", "m", {"10.0.0.5": "10.0.0.6"}),
    DeleteElements: DeleteElements("t", "s", ("10.0.0.1",)),
}


@pytest.mark.parametrize("kind", get_args(Step))
def test_every_step_meets_every_verb(nft: Nft, kind: type) -> None:
    """Printed, checked, run: a new kind of step has to be entered above, and to work everywhere."""
    transaction = Transaction((EVERY_STEP[kind],))
    assert transaction_text(transaction).strip()
    made(nft)
    before = nft.read("t"), nft.read("other")
    nft.check(transaction)
    assert (nft.read("t"), nft.read("other")) == before
    nft.run(transaction)
    assert (nft.read("t"), nft.read("other")) != before


def test_applying_creates_the_table_and_a_second_time_changes_nothing(nft: Nft) -> None:
    assert intent.apply(policy_of(), nft).action == "create"
    before = read(nft, "natctl")
    again = intent.apply(policy_of(), nft)
    assert (again.action, again.transaction) == ("none", Transaction())
    assert read(nft, "natctl") == before


def test_a_change_of_elements_sends_those_alone(nft: Nft) -> None:
    intent.apply(policy_of(coexist="off"), nft)
    wider = policy_of("9000-9009", coexist="off", to="10.0.0.3")
    change = intent.apply(wider, nft)
    assert change.action == "update"
    assert change.transaction.steps == (
        DeleteElements("natctl", "dnat4", ("198.51.100.10 . tcp . 9000-9009", "198.51.100.10 . udp . 9000-9009")),
        AddElements(
            "natctl",
            "dnat4",
            {"198.51.100.10 . tcp . 9000-9009": "10.0.0.3", "198.51.100.10 . udp . 9000-9009": "10.0.0.3"},
        ),
    )
    assert not intent.apply(wider, nft).transaction


@pytest.mark.parametrize("after", [{"coexist": "off"}, {"guard": "count"}, {"guard": "off"}])
def test_a_change_of_the_rules_rebuilds_the_table(nft: Nft, after: dict[str, str]) -> None:
    intent.apply(policy_of(), nft)
    change = intent.apply(policy_of(**after), nft)
    assert change.action == "rebuild"
    assert isinstance(change.transaction.steps[0], FlushRules)
    assert not intent.apply(policy_of(**after), nft).transaction


def test_a_rebuild_keeps_what_packets_recorded(nft: Nft) -> None:
    intent.apply(policy_of(), nft)
    key = f"{STRAY} counter packets 3 bytes 180 timeout 86400s expires 3600s"
    run(nft, AddElements("natctl", "strays4", {key: ""}))
    assert not intent.apply(policy_of(), nft).transaction  # what packets recorded is no drift
    assert intent.apply(policy_of("9000-9009", "9100"), nft).action == "rebuild"
    (kept,) = read(nft, "natctl").elements["strays4"]
    words = kept.removeprefix(STRAY).split()
    assert words[:5] == ["counter", "packets", "3", "bytes", "180"]
    assert 3500 <= int(words[-1].removesuffix("s")) <= 3600


def test_recorded_packets_go_where_the_guard_goes(nft: Nft) -> None:
    intent.apply(policy_of(), nft)
    run(nft, AddElements("natctl", "strays4", {STRAY: ""}))
    assert intent.apply(policy_of(guard="off"), nft).action == "rebuild"
    assert "strays4" not in read(nft, "natctl").elements


def test_removing_takes_the_table_and_nothing_else(nft: Nft) -> None:
    other = read(made(nft))
    intent.apply(policy_of(), nft)
    assert intent.remove("natctl", nft)
    assert nft.read("natctl") is None
    assert not intent.remove("natctl", nft)
    assert read(nft) == other


def test_more_elements_than_one_statement_takes(nft: Nft) -> None:
    wanted = {f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}": "" for n in range(2 * ELEMENTS_A_STATEMENT + 1)}
    ruleset = render(policy_of(coexist="off"))
    ruleset.elements["soft4"].update(wanted)  # type: ignore[attr-defined]
    listing = nft.listing_of("natctl", ruleset.skeleton)
    transaction = plan(ruleset, listing, None)
    additions = [step for step in transaction.steps if isinstance(step, AddElements) and step.set == "soft4"]
    assert [len(step.elements) for step in additions] == [5000, 5000, 2]
    nft.run(transaction)
    assert not plan(ruleset, listing, read(nft, "natctl"))
