"""docs/grafana-natctl.json is a dashboard that Grafana loads, and asks for metrics that natctl has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from nat_rewriter.model.watching import ConntrackCounts, RecorderStatus, SliceUse, WatchStatus
from nat_rewriter.report.metrics import WatchCollector

PATH = Path(__file__, "../../../docs/grafana-natctl.json").resolve()
DASHBOARD = json.loads(PATH.read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
VARIABLES = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
KINDS = {"row", "stat", "gauge", "timeseries", "bargauge"}
GRID_WIDTH = 24


def expressions() -> Iterator[str]:
    for panel in PANELS:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (one["definition"] for one in VARIABLES.values() if one["type"] == "query")


def metric_names() -> set[str]:
    cpus = ({"cpu": 0} | dict.fromkeys(
        ("found", "invalid", "insert", "insert_failed", "drop", "early_drop", "error", "search_restart",
         "clash_resolve", "chain_toolong"), 0,
    ),)  # fmt: skip
    uses = (SliceUse("ams-1", 1, "tcp 203.0.113.1:443", 1, 10, 9),)
    status = WatchStatus("live", slices=uses, recorder=RecorderStatus())
    registry = CollectorRegistry()
    registry.register(WatchCollector(lambda: status, lambda: ConntrackCounts(1, 10, cpus)))
    return set(re.findall(r"^(natctl_\w+)", generate_latest(registry).decode(), re.MULTILINE))


def test_expressions_ask_for_metrics_that_exist() -> None:
    asked = {name for expression in expressions() for name in re.findall(r"\bnatctl_\w+", expression)}
    assert asked
    assert asked <= metric_names()
    # And what is measured is shown; two of the kernel's counters say little.
    assert metric_names() - asked == {"natctl_conntrack_insert_total", "natctl_conntrack_error_total"}


def test_it_is_a_dashboard() -> None:
    assert DASHBOARD["id"] is None  # else an import takes it for one that exists
    assert (DASHBOARD["uid"], DASHBOARD["title"]) == ("natctl", "natctl")
    assert DASHBOARD["schemaVersion"] >= 36
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        assert panel["type"] in KINDS
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["targets"]
            assert panel["description"].endswith(".")
            assert panel["fieldConfig"].keys() == {"defaults", "overrides"}


def test_every_query_goes_to_the_datasource_that_was_chosen() -> None:
    assert (VARIABLES["datasource"]["type"], VARIABLES["datasource"]["query"]) == ("datasource", "prometheus")
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        targets = panel.get("targets", [])
        assert all(target["datasource"] == chosen for target in targets)
        assert len({target["refId"] for target in targets}) == len(targets)
    assert all(one["datasource"] == chosen for one in VARIABLES.values() if one["type"] == "query")


def test_variables_that_are_used_are_there() -> None:
    used = {name for expression in expressions() for name in re.findall(r"\$(?!__)(\w+)", expression)}
    assert used <= set(VARIABLES)
    for expression in expressions():
        assert [expression.count(each) for each in "([{"] == [expression.count(each) for each in ")]}"]


def test_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in PANELS)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < GRID_WIDTH
