"""Scenarios: short stories on a real kernel, each of which fails when something goes otherwise than it says."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nat_rewriter.errors import UsageError
from netns_lab.fleet import Fleet
from netns_lab.fleet_stage import FleetStage
from netns_lab.lab import Lab
from netns_lab.narrator import Narrator
from netns_lab.scenarios import GROUPS
from netns_lab.settings import DEFAULT_SLICES, parse_slices
from netns_lab.stage import Stage

Play = Callable[[Stage], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A story: its name, one line about it, what happens, the lab it needs, and what it is grouped with."""

    name: str
    summary: str
    play: Play
    lab_options: dict[str, Any]
    group: str = ""

    def run(self, narrator: Narrator, lab: Lab | None = None) -> None:
        """Play it in a lab of its own, or in one that stands; NotAsExpected where it goes otherwise than it says."""
        narrator.begin(self.name, self.summary)
        if lab is not None:
            self._check_fit(lab)
            self.play(Stage(lab, narrator))
            return
        with Lab(**self.lab_options) as own:
            self.play(Stage(own, narrator))

    def _check_fit(self, lab: Lab) -> None:
        """Raise UsageError when a lab that stands lacks the slices or clients that the story is about."""
        clients = self.lab_options.get("clients", 1)
        slices = self.lab_options.get("slices", DEFAULT_SLICES)
        if lab.clients < clients or lab.slices != parse_slices(slices):
            options = "".join(f" --slice {spec}" for spec in slices if slices != DEFAULT_SLICES)
            options += f" --clients {clients}" if clients > 1 else ""
            raise UsageError("run scenario", f"expected a lab made by natctl lab up{options} for it", self.name)


FleetPlay = Callable[[FleetStage], None]


@dataclass(frozen=True, slots=True)
class FleetScenario:
    """A story of a fleet: its name, one line about it, what happens, and what it is grouped with."""

    name: str
    summary: str
    play: FleetPlay
    group: str

    def run(self, narrator: Narrator, lab: Lab | None = None) -> None:
        """Play it in a fleet of its own; NotAsExpected where it goes otherwise than it says."""
        if lab is not None:
            raise UsageError("run scenario", "it makes a fleet of its own, and cannot be played in a lab", self.name)
        narrator.begin(self.name, self.summary)
        with Fleet() as fleet:
            self.play_in(fleet, narrator).finish()

    def play_in(self, fleet: Fleet, narrator: Narrator) -> FleetStage:
        """Play it in a fleet in which all is well, and leave it so."""
        stage = FleetStage(fleet, narrator)
        self.play(stage)
        return stage


_REGISTERED: dict[str, Scenario | FleetScenario] = {}


def scenario(name: str, summary: str, **lab_options: Any) -> Callable[[Play], Play]:
    """Register a function as a scenario of its module's group; ``lab_options`` are those of a Lab."""

    def register(play: Play) -> Play:
        module = play.__module__.rpartition(".")[2]
        _REGISTERED[name] = Scenario(name, summary, play, lab_options, GROUPS[module])
        return play

    return register


def fleet_scenario(name: str, summary: str) -> Callable[[FleetPlay], FleetPlay]:
    """Register a function as a scenario of a fleet, of its module's group."""

    def register(play: FleetPlay) -> FleetPlay:
        module = play.__module__.rpartition(".")[2]
        _REGISTERED[name] = FleetScenario(name, summary, play, GROUPS[module])
        return play

    return register


def list_scenarios() -> list[Scenario | FleetScenario]:
    """Return all scenarios, group by group."""
    for module in GROUPS:
        importlib.import_module(f"netns_lab.scenarios.{module}")
    return list(_REGISTERED.values())


def get_scenario(name: str) -> Scenario | FleetScenario:
    """Return the scenario of that name; UsageError names those there are."""
    known = {each.name: each for each in list_scenarios()}
    if name not in known:
        raise UsageError("run scenario", f"expected one of {', '.join(known)}", name)
    return known[name]
