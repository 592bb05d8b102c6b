"""``natctl pool`` as its users type it, with a store in a file."""

from __future__ import annotations

import io
import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from nat_rewriter.cli.main import natctl
from nat_rewriter.config import read_policy
from nat_rewriter.errors import NatctlError, StateError, UsageError
from nat_rewriter.model.pools import Holding

CONFIG = """version = 1
[[pool]]
name = "fleet"
addresses = ["198.51.100.20", "198.51.100.21"]
ports = "4096-8191"
slice_size = 1024
[store]
url = "sqlite:{path}"
"""

Pool = Callable[..., Result]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "natctl.toml"
    path.write_text(CONFIG.format(path=tmp_path / "pools.sqlite"))
    return path


@pytest.fixture
def pool(config: Path) -> Pool:
    """Run a pool command; its error, if any, is raised."""

    def run(*words: str) -> Result:
        arguments = ["pool", *words, "--config", str(config)]
        return CliRunner().invoke(natctl, arguments, standalone_mode=False, catch_exceptions=False)

    run("init")
    return run


def objects(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.output.splitlines()]


def test_acquire_show_release(pool: Pool) -> None:
    (held,) = objects(pool("acquire", "fleet", "--host", "a", "--json"))
    assert (held["pool"], held["host"], held["state"]) == ("fleet", "a", "held")
    (shown,) = objects(pool("show", "--json"))
    assert shown["slices"] == {"held": 1, "resting": 0, "free": 7}
    assert pool("release", "fleet", "--all", "--host", "a", "-q").return_value == 0
    (shown,) = objects(pool("show", "fleet", "--json"))
    assert shown["slices"] == {"held": 0, "resting": 1, "free": 7}
    assert [each["what"] for each in objects(pool("history", "fleet", "--json"))] == ["acquired", "released"]


def test_slices_for_a_configuration(pool: Pool, tmp_path: Path) -> None:
    printed = pool("acquire", "fleet", "--count", "3", "--host", "a", "--toml").output
    assert len(tomllib.loads(printed)["slice"]) == 3
    assert len(read_policy(f"version = 1\n{printed}".encode()).slices) == 3
    assert pool("renew", "fleet", "--host", "a", "--toml").output.count("[[slice]]") == 3


def test_plain_lines(pool: Pool) -> None:
    line = pool("acquire", "fleet", "--host", "a").output
    name, host, state, _since, left = line.rstrip("\n").split("\t")
    assert (host, state, left) == ("a", "held", "30s")
    moved = pool("transfer", "fleet", name, "--host", "a", "--to", "b", "--no-flows").output
    assert moved.split("\t")[:2] == [name, "b"]
    assert pool("history", "fleet", name).output.rstrip().endswith(f"transferred {name} a to b")


def test_a_host_without_slices_has_nothing_to_renew(pool: Pool) -> None:
    assert pool("renew", "fleet", "--host", "nobody").return_value == 3


def test_terms_that_differ_are_told(pool: Pool, config: Path) -> None:
    assert pool("show").return_value == 0
    config.write_text(config.read_text().replace("slice_size = 1024", "slice_size = 512"))
    told = pool("show")
    assert told.return_value == 3
    assert "fleet: the configuration has other terms than the store" in told.output
    pool("acquire", "fleet", "--host", "a")
    with pytest.raises(NatctlError, match="is held or rests, and would be no slice of it any more"):
        pool("init")


def test_a_person_sees_the_port_space(pool: Pool, config: Path) -> None:
    from rich.console import Console

    from nat_rewriter.cli.pool_view import pool_view
    from nat_rewriter.pool import open_store

    pool("acquire", "fleet", "--count", "2", "--host", "a")
    pool("acquire", "fleet", "--host", "b")
    pool("release", "fleet", "--all", "--host", "b")
    with open_store(read_policy(config).store) as store:
        (found,) = store.pools()
        view = pool_view(found, store.holdings("fleet"), 80)
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(view)
    text = console.export_text()
    strips = "".join(line.split()[2] for line in text.splitlines() if "4096-8191" in line)
    assert sorted(strips) == sorted("AA~" + "·" * 5)
    assert "2 held, 1 resting, 5 free; slices of 1024 ports" in text
    assert max(map(len, text.splitlines())) <= 80


def test_what_is_not_to_be_used_yet(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a store in etcd has it; SQLite's knows when terms have ended."""
    from nat_rewriter.pool.sqlite_store import SqliteStore

    holdings = SqliteStore.holdings

    def in_quarantine(store: SqliteStore, name: str) -> list[Holding]:
        return [replace(each, quarantine_s=12.0) for each in holdings(store, name)]

    pool("acquire", "fleet", "--host", "a")
    monkeypatch.setattr(SqliteStore, "holdings", in_quarantine)
    line, note = pool("show").output.splitlines()
    assert line.split("\t")[2::2] == ["quarantined", "12s"]
    assert note.startswith("1 held and not to be used yet: the last holder has not given it back")
    (shown,) = objects(pool("show", "--json", "-q"))
    (held,) = shown["holdings"]
    assert (held["state"], held["quarantine_s"], shown["slices"]["held"]) == ("quarantined", 12.0, 1)
    monkeypatch.setattr(SqliteStore, "renew", lambda store, name, host: in_quarantine(store, name))
    assert "[[slice]]" not in pool("renew", "fleet", "--host", "a", "--toml").output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("release", "fleet", "198.51.100.20:4097"), "it is no slice of the pool fleet"),
        (("release", "fleet", "203.0.113.1:4096"), "it is no slice of the pool fleet"),
        (("release", "fleet", "999.1.1.1:4096"), "it is no slice of the pool fleet"),
        (("acquire", "fleet", "--host", "a/b"), "expected 1 to 63 letters"),
    ],
)
def test_words_that_mean_nothing(pool: Pool, words: tuple[str, ...], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        pool(*words)


def test_a_pool_that_is_not_there(pool: Pool) -> None:
    with pytest.raises(NatctlError, match="there is no such pool in the store; there: fleet: 'flet'"):
        pool("acquire", "flet")


def test_a_store_that_cannot_be_reached(pool: Pool, config: Path) -> None:
    config.write_text(config.read_text().replace("sqlite:", "sqlite:/proc/nowhere"))
    with pytest.raises(StateError, match="read pools"):
        pool("show")


def test_init_without_pools(tmp_path: Path) -> None:
    path = tmp_path / "natctl.toml"
    path.write_text(
        'version = 1\n[[slice]]\nname = "a"\naddress = "198.51.100.1"\nports = [1]\n'
        f'[store]\nurl = "sqlite:{tmp_path}/p"\n'
    )
    with pytest.raises(UsageError, match=r"there is no \[\[pool\]\] in the configuration"):
        CliRunner().invoke(
            natctl, ["pool", "init", "--config", str(path)], standalone_mode=False, catch_exceptions=False
        )


def test_a_rule_over_pools_of_both_ip_versions_waits_for_each() -> None:
    content = """version = 1
        [[pool]]
        name = "four"
        addresses = ["198.51.100.20"]
        slice_size = 1024
        [[pool]]
        name = "six"
        addresses = ["2001:db8::20"]
        slice_size = 1024
        [[slice]]
        name = "held"
        address = "198.51.100.20"
        ports = ["2048-3071"]
        [[snat]]
        name = "clients"
        source = ["10.0.0.0/24", "fd00::/64"]
        pools = ["four", "six"]
        """
    (rule,) = read_policy(content.encode()).snat
    assert [owned.name for owned in rule.slices] == ["held"]
    assert [network.version for network in rule.source] == [4, 6]
