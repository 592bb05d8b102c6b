"""Plans of routing: nothing is missing in between, and what was there comes back."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nat_rewriter.config import read_policy
from nat_rewriter.controller.routing_plan import (
    find_overtaking,
    keep,
    keep_finished,
    plan_return,
    plan_routing,
    wanted_of,
)
from nat_rewriter.errors import ConfigError
from nat_rewriter.kernel.route_table import handed_on
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.route import EarlyDemux
from nat_rewriter.model.routing import (
    LOCAL_TABLE,
    AddRoute,
    AddRule,
    DeleteRoute,
    DeleteRule,
    DeleteTable,
    Kept,
    Live,
    LoadTable,
    Rule,
    SetSysctl,
    Step,
)
from nat_rewriter.render.route import render_route

SLICES = """version = 1
[[slice]]
name = "ams-1"
address = "198.51.100.10"
ports = ["9000-9009", "9100"]
[[slice]]
name = "ams-6"
address = "2001:db8::10"
ports = ["9000-9009"]
protocols = ["tcp", "icmp"]
[[slice]]
name = "echo"
address = "198.51.100.11"
ports = ["1-9"]
protocols = ["icmp"]
"""
ROUTE = {"tunnel": '"soft0"', "outer": '["eth0"]', "slices": '["ams-1", "ams-6"]'}
DEFAULT = tuple(Rule(family, priority, table) for family in (4, 6) for priority, table in ((0, 255), (32766, 254)))
BEFORE = {"accept_local": "0", "src_valid_mark": "0", "forwarding": "1", "early_demux": "1"}


def policy(**keys: str) -> Policy:
    text = "\n".join(f"{key} = {value}" for key, value in (ROUTE | keys).items())
    return read_policy(f"{SLICES}[route]\n{text}\n".encode())


def problems(**keys: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        policy(**keys)
    return [f"{problem.path}: {problem.expected}" for problem in caught.value.problems]


class Host:
    """A host that does what steps say, and is looked at after each of them."""

    def __init__(self, rules: tuple[Rule, ...] = DEFAULT) -> None:
        self.live = Live(rules, (), {}, None, "", {"soft0": 7, "eth0": 2})
        self.kept = Kept()
        self.without_local: list[Step] = []

    def apply(self, wanted_policy: Policy, steps: int = 1000) -> list[Step]:
        route = wanted_policy.route
        assert route
        self._know_sysctls(wanted_policy)
        wanted = wanted_of(route, wanted_policy, self.live, self.kept)
        planned = plan_routing(wanted, self.live, self.kept)
        if planned:
            self.kept = keep(wanted, route, self.live, self.kept)
            for step in planned[:steps]:
                self.take(step)
            if steps >= len(planned):
                self.kept = keep_finished(wanted, self.kept, self.live.listing)
        return planned

    def remove(self) -> list[Step]:
        planned = plan_return(self.live, self.kept, "natctl_route")
        for step in planned:
            self.take(step)
        self.kept = Kept()
        return planned

    def _know_sysctls(self, wanted_policy: Policy) -> None:
        for name in wanted_of(wanted_policy.route, wanted_policy, self.live, self.kept).sysctls or {}:
            value = next((value for end, value in BEFORE.items() if name.endswith(end)), "1")
            self.live.sysctls.setdefault(name, value)

    def take(self, step: Step) -> None:
        live = self.live
        match step:
            case AddRule(rule):
                live = replace(live, rules=tuple(sorted((*live.rules, rule))))
            case DeleteRule(rule):
                live = replace(live, rules=tuple(one for one in live.rules if one != rule))
            case AddRoute(route):
                rest = tuple(one for one in live.routes if (one.table, one.address) != (route.table, route.address))
                live = replace(live, routes=(*rest, route))
            case DeleteRoute(route):
                live = replace(live, routes=tuple(one for one in live.routes if one != route))
            case SetSysctl(name, value):
                live.sysctls[name] = value
            case LoadTable(family, _, text):
                live = replace(live, table_family=family, listing=f"listed {text}")
            case DeleteTable(_):
                live = replace(live, table_family=None, listing="")
        self.live = live
        for family in (4, 6):
            if not any(rule.is_local for rule in live.rules if rule.family == family):
                self.without_local.append(step)


ROUTES = [
    policy(),
    policy(early_demux='"sysctl"', priority="5", local_priority="7"),
    policy(slices='["ams-6"]', table="7", mark="1", mask="1"),
    policy(slices='["ams-1"]', early_demux='"off"', via='"10.0.0.2"'),
]


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(ROUTES), st.integers(0, 20)), max_size=6),
    st.sampled_from([(0,), (0, 3), (4,), (1000,), (0, 1000)]),
)
def test_whatever_is_applied_and_cut_short_comes_back_as_it_was(
    applied: list[tuple[Policy, int]], priorities: tuple[int, ...]
) -> None:
    others = tuple(Rule(family, priority, LOCAL_TABLE) for family, priority in product((4, 6), priorities))
    host = Host(tuple(sorted((*others, *(rule for rule in DEFAULT if not rule.is_local)))))
    rules = host.live.rules
    sysctls: dict[str, str | None] = {}
    for wanted, steps in applied:
        host.apply(wanted, steps)
        sysctls = {name: BEFORE.get(name.rpartition(".")[2], "1") for name in host.live.sysctls}
    host.remove()
    assert (host.live.rules, host.live.routes, host.live.table_family) == (rules, (), None)
    assert host.without_local == []
    assert {name: value for name, value in host.live.sysctls.items() if "demux" not in name} == {
        name: value for name, value in sysctls.items() if "demux" not in name
    }
    assert {value for name, value in host.live.sysctls.items() if "demux" in name} <= {"1"}


@pytest.mark.parametrize("wanted", ROUTES, ids=range(len(ROUTES)))
def test_a_second_apply_is_empty(wanted: Policy) -> None:
    host = Host()
    assert host.apply(wanted)
    assert host.apply(wanted) == []
    for other in ROUTES:
        host.apply(other)
        assert host.apply(other) == []


def test_the_local_rule_is_made_before_the_other_goes() -> None:
    steps = [step for step in Host().apply(policy()) if isinstance(step, AddRule | DeleteRule)]
    for family in (4, 6):
        local = [step for step in steps if step.rule.family == family and step.rule.is_local]
        assert [(type(step), step.rule.priority) for step in local] == [(AddRule, 2), (DeleteRule, 0)]


def test_a_rule_in_between_is_found() -> None:
    overtaking = Rule(4, 2, 9, plain=False)
    live = Live((*DEFAULT, overtaking), (), {}, None, "", {})
    wanted = policy()
    assert wanted.route
    assert find_overtaking(wanted_of(wanted.route, wanted, live, Kept()), live) == overtaking
    later = replace(live, rules=(*DEFAULT, replace(overtaking, priority=3)))
    assert find_overtaking(wanted_of(wanted.route, wanted, later, Kept()), later) is None


# configuration


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"tunnel": '"a b"'}, "route.tunnel: expected an interface name"),
        ({"outer": '["soft0"]'}, "route.outer: expected devices other than the tunnel"),
        ({"outer": "[]"}, "route.outer: expected at least one item"),
        ({"slices": '["ams-2"]'}, 'route.slices[0]: expected the name of a [[slice]], did you mean "ams-6"?'),
        ({"slices": '["echo"]'}, "route.slices[0]: expected a slice with tcp or udp among its protocols"),
        ({"early_demux": '"on"'}, 'route.early_demux: expected one of "ingress", "device", "sysctl", "off"'),
        ({"mark": "0x100", "mask": "0xff"}, "route.mark: expected a mark within the bits of mask, 0xff"),
        ({"mark": "0"}, "route.mark: expected an integer from 1 to 4294967295"),
        ({"table": "254"}, "route.table: expected a table of its own"),
        ({"priority": "7"}, "route.local_priority: expected a number above that of priority, 7"),
        ({"via": '["10.0.0.2", "10.0.0.3"]'}, "route.via[1]: expected one gateway of each family"),
        ({"via": '["2001:db8::1"]', "slices": '["ams-1"]'}, "route.via[0]: expected an IPv4 address"),
        ({"idle": "0"}, "route.idle: expected an integer from 1 to 86400"),
        ({"nonsense": "1"}, "route.nonsense: expected a known key"),
    ],
)
def test_what_is_wrong_is_told(keys: dict[str, str], told: str) -> None:
    assert any(line.startswith(told) for line in problems(**keys)), problems(**keys)


def test_what_is_missing_is_told() -> None:
    with pytest.raises(ConfigError) as caught:
        read_policy(f"{SLICES}[route]\n".encode())
    assert {problem.path for problem in caught.value.problems} == {"route.tunnel", "route.outer", "route.slices"}


# the table


def test_the_ports_that_are_handed_on_are_read_off_the_listing() -> None:
    route = policy().route
    assert route
    text = render_route(route, "natctl").text.replace("\n\n", "\n")
    found = {(str(one.address), one.protocol, str(one.ports)) for one in handed_on(text)}
    assert found == {
        ("198.51.100.10", "tcp", "9000-9009"),
        ("198.51.100.10", "tcp", "9100"),
        ("198.51.100.10", "udp", "9000-9009"),
        ("198.51.100.10", "udp", "9100"),
        ("2001:db8::10", "tcp", "9000-9009"),
    }
    gone = text.replace('device "soft0"\n', "device 7\n")
    assert gone != text
    assert handed_on(gone) == []


@pytest.mark.parametrize("answer", EarlyDemux)
def test_a_table_has_one_family_and_the_marks_of_the_route(answer: EarlyDemux) -> None:
    route = policy(early_demux=f'"{answer.value}"', mark="0x10", mask="0xf0").route
    assert route
    table = render_route(route, "natctl")
    assert (table.family, table.name) == ("netdev" if answer is EarlyDemux.INGRESS else "inet", "natctl_route")
    assert table.text.startswith(f"table {table.family} natctl_route {{\n")
    assert "meta mark set meta mark & 0xffffff0f | 0x00000010" in table.text
