"""Descriptors of proxies: when there are too few for the connections that a configuration allows."""

from __future__ import annotations

import resource
from dataclasses import replace

import pytest
from configurations import SMALLEST

from nat_rewriter.config import read_policy
from nat_rewriter.model.proxies import Proxy
from nat_rewriter.proxy.descriptors import raise_limit, tell_shortage

TEXT = f"""{SMALLEST}
[[proxy]]
name = "applications"
mode = "socks"
listen = "127.0.0.1:1080"
slices = ["ams-1"]
max_connections = 1000
"""


@pytest.fixture
def proxy() -> Proxy:
    return read_policy(TEXT.encode(), "test").proxies[0]


@pytest.mark.parametrize(("limit", "workers", "enough"), [(2064, 1, True), (2063, 1, False), (1064, 2, True)])
def test_two_descriptors_a_connection_are_enough(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, limit: int, workers: int, enough: bool
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    said = tell_shortage([proxy], workers)
    assert (said == "") == enough
    if said:
        assert "allows 1000 connections, but 1 workers with 2063 descriptors each carry 999" in said
        assert "raise the limit of open files to 2064" in said


def test_the_limit_is_raised_as_far_as_it_may_be(proxy: Proxy) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        raise_limit([replace(proxy, max_connections=1 << 40)])  # more than anybody may have
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
