"""Every scenario and the demo happen as they say; and they fail when something goes otherwise."""

from __future__ import annotations

import io
import json
import pkgutil

import pytest

from nat_rewriter.errors import UnsupportedFeature
from nat_rewriter.model.slices import PortRange
from netns_lab import Lab, scenarios
from netns_lab.demo import DEMO
from netns_lab.narrator import JsonNarrator, Observation, PlainNarrator
from netns_lab.scenario import Scenario, get_scenario, list_scenarios
from netns_lab.stage import SLICE, Stage
from netns_lab.story import NotAsExpected, Outside, Within

# Those of a fleet are played by test_fleet.py, in one fleet for all.
LAB_SCENARIOS = [each for each in list_scenarios() if isinstance(each, Scenario)]


@pytest.mark.parametrize("scenario", [*LAB_SCENARIOS, DEMO], ids=lambda scenario: scenario.name)
@pytest.mark.usefixtures("_permitted")
def test_a_scenario_goes_as_it_says(scenario: Scenario) -> None:
    told = io.StringIO()
    try:
        scenario.run(PlainNarrator(told))
    except UnsupportedFeature as error:
        pytest.skip(str(error))
    assert "  ok   " in told.getvalue()
    assert "FAIL" not in told.getvalue()


def test_the_demo_fails_at_the_step_that_does_not_happen(lab: Lab) -> None:
    lab.server.nft("table inet t { chain c { type filter hook input priority 0; tcp dport 443 drop;\n}\n}")
    told = io.StringIO()
    with pytest.raises(NotAsExpected, match=r"^2\. A client .*: expected yes, saw no$"):
        DEMO.run(JsonNarrator(told), lab)
    last = json.loads(told.getvalue().splitlines()[-1])
    assert (last["scenario"], last["expected"], last["saw"], last["met"]) == ("demo", "yes", "no", False)


def test_a_command_that_fails_is_reported_with_its_step(lab: Lab) -> None:
    def play(stage: Stage) -> None:
        with stage.step("A setting that does not exist"):
            stage.apply(coexist="nonsense")

    told = io.StringIO()
    with pytest.raises(NotAsExpected, match=r"^A setting that does not exist: .*nonsense"):
        Scenario("broken", "", play, {}).run(PlainNarrator(told), lab)


def test_expectations_are_values_ranges_or_what_lies_outside(lab: Lab) -> None:
    stage = Stage(lab, PlainNarrator(io.StringIO()))
    stage.expect("port", 9000, SLICE)
    stage.expect("port", 63346, Outside(SLICE))
    stage.expect("port", 9101, Within((SLICE, PortRange(9100, 9101))))
    stage.expect("port", None, None)
    for saw, expected in (
        (9010, SLICE),
        (9010, Within((SLICE,))),
        (None, SLICE),
        (9000, Outside(SLICE)),
        (None, Outside(SLICE)),
        (0, False + 1),
    ):
        with pytest.raises(NotAsExpected):
            stage.expect("port", saw, expected)


def test_what_was_expected_is_told_where_it_differs_from_what_was_seen() -> None:
    told = io.StringIO()
    narrator = PlainNarrator(told)
    narrator.observe(Observation("step", "port", "9000-9009", "9003", True))
    narrator.observe(Observation("step", "port", "9000", "9000", True))
    narrator.observe(Observation("step", "port", "9000-9009", "63346", False))
    assert told.getvalue().splitlines() == [
        "  ok   port: 9003  (expected: 9000-9009)",
        "  ok   port: 9000",
        "  FAIL port: 63346  (expected: 9000-9009)",
    ]


def test_every_module_of_scenarios_is_a_group_that_has_some() -> None:
    modules = {module.name for module in pkgutil.iter_modules(scenarios.__path__)}
    assert modules == set(scenarios.GROUPS)
    assert {each.group for each in list_scenarios()} == set(scenarios.GROUPS.values())


def test_every_scenario_has_a_name_for_the_command_line() -> None:
    assert all(get_scenario(each.name) is each and each.summary for each in list_scenarios())
