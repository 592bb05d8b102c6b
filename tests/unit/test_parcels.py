"""Flows as one host packs them and another reads them."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import CLIENT, SERVER, SOFT, flow, flows

from nat_rewriter.errors import NatctlError
from nat_rewriter.model.flows import flow_from_record
from nat_rewriter.report.parcels import pack_flows, unpack_flows

WEB = (SERVER, 443)
HEAD = {"version": 1, "flows": 1}


def table(count: int) -> list[dict[str, object]]:
    return [flow(((CLIENT, 1000 + number), WEB), (SOFT, 9000 + number)) for number in range(count)]


@given(st.integers(0, 50))
def test_flows_come_out_as_they_went_in(count: int) -> None:
    records = flows(*table(count))
    wanted = [replace(flow_from_record(each), id=0, packets=None, bytes=None, start_ns=None) for each in records]
    assert unpack_flows(pack_flows(records)) == wanted


def packed(*lines: object) -> bytes:
    return zlib.compress("\n".join(json.dumps(each) for each in lines).encode())


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "not what natctl packs"),
        (b"rubbish", "not what natctl packs"),
        (packed([]), "not what natctl packs"),
        (packed({"version": 2, "flows": 0}), "packed by another natctl, expected version 1: '2'"),
        (packed(HEAD), "0 flows of 1 arrived"),
        (packed(HEAD, {}), "line 1: a flow without protocol"),
        (zlib.compress(b"[" * 100_000), "not what natctl packs"),
        (zlib.compress(json.dumps(HEAD).encode() + b"\n" + b"[" * 100_000), "line 1: no flow of natctl flows"),
        (packed(HEAD, [1]), "line 1: no flow of natctl flows"),
        (pack_flows(flows(*table(9)))[:-9], "arrived|not what natctl packs"),
    ],
)
def test_what_is_no_parcel(data: bytes, told: str) -> None:
    with pytest.raises(NatctlError, match=told):
        unpack_flows(data)
