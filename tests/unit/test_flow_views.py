"""Flows as text in bulk, rankings and heat maps, over tables made by hand."""

from __future__ import annotations

import random
from ipaddress import ip_address

import numpy as np
import pytest
from tables import AMS, AMS6, CLIENT, SERVER, SOFT, SOFT6, flow, flows

from nat_rewriter.detect import Observation, SliceIndex
from nat_rewriter.detect.heat import heat_map
from nat_rewriter.detect.placement import place_flows
from nat_rewriter.detect.ranking import rank_flows
from nat_rewriter.detect.selection import Selection
from nat_rewriter.model.flow_views import Rank, Ranked
from nat_rewriter.model.flows import FLOW_FIELDS, Present, flow_from_record
from nat_rewriter.model.slices import PortRange, PortSet, Protocol, Slice
from nat_rewriter.report import flow_line, flow_object, json_line
from nat_rewriter.report.flow_text import flow_json_lines, flow_word_lines
from nat_rewriter.report.flow_views import bytes_text, heat_lines, heat_object, rank_object, rank_row, shade_of

WEB, DNS = (SERVER, 443), ("203.0.113.2", 53)
LOW = (PortRange(0, 40000),)
WIDE = Slice("ams-1", ip_address(SOFT), LOW, AMS.protocols)
ODD = Slice('käse "9"', ip_address("198.51.100.11"), LOW, AMS.protocols)


def anything(count: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """A table of whatever the kernel could send, and more."""
    rng = np.random.default_rng(seed)
    table = np.zeros(count, dtype=FLOW_FIELDS)
    for name in ("id", "mark", "timeout_s"):
        table[name] = rng.integers(0, 1 << 32, count)
    for name in ("orig_sport", "orig_dport", "reply_sport", "reply_dport", "zone"):
        table[name] = rng.integers(0, 1 << 16, count) * rng.integers(0, 2, count)
    table["status"] = rng.integers(0, 1 << 16, count)
    table["present"] = rng.integers(0, 1 << 8, count)
    table["tcp_state"] = rng.integers(0, 12, count)
    table["protocol"] = rng.choice([1, 6, 17, 33, 47, 50, 58, 132], count)
    table["family"] = rng.choice([4, 6], count)
    table["packets"], table["bytes"] = rng.integers(0, 1 << 40, (2, count, 2))
    table["start_ns"] = rng.integers(1_700_000_000_000_000_000, 1_800_000_000_000_000_000, count)
    softs = [int(ip_address(each)) for each in (SOFT, "198.51.100.11", CLIENT, "0.0.0.0")]
    for name in ("orig_src", "orig_dst", "reply_src", "reply_dst"):
        table[name][:, 1] = rng.choice(softs, count)
        table[name][:, 0] = np.where(table["family"] == 6, rng.integers(0, 1 << 62, count), 0)
    return table


@pytest.mark.parametrize("seed", range(5))
def test_in_bulk_it_is_the_same_text(seed: int) -> None:
    table = anything(400, seed)
    placement = place_flows(table, SliceIndex((WIDE, ODD)))
    rows = np.arange(len(table))
    names, origins = placement.names_of(rows), placement.origins_of(rows)
    assert set(names) == {None, "ams-1", ODD.name}
    one_by_one = [
        (flow_from_record(record), placement.slice_of(row), placement.origin_of(row))
        for row, record in enumerate(table)
    ]
    assert list(flow_json_lines(table, names, origins)) == [json_line(flow_object(*each)) + "\n" for each in one_by_one]
    assert list(flow_word_lines(table, names, origins)) == [flow_line(*each) + "\n" for each in one_by_one]


def test_no_flows_are_no_lines() -> None:
    assert list(flow_json_lines(flows(), [], [])) == list(flow_word_lines(flows(), [], [])) == []


def test_age() -> None:
    table = flows(*(flow(((CLIENT, n), WEB), start_ns=n * 100, present=int(Present.TIMESTAMP)) for n in range(1, 6)))
    table["present"][4] = 0
    placement = place_flows(table, SliceIndex(()))
    assert Selection(began_before_ns=200).rows(table, placement).tolist() == [0, 1]
    assert Selection(began_after_ns=300).rows(table, placement).tolist() == [2, 3]
    assert Selection(began_after_ns=200, began_before_ns=300).rows(table, placement).tolist() == [1, 2]
    assert len(Selection().rows(table, placement)) == 5


def busy_table() -> np.ndarray[tuple[int], np.dtype[np.void]]:
    counted = {"present": int(Present.COUNTERS), "bytes": (1000, 500)}
    rows = [flow(((CLIENT, 20000 + n), WEB), (SOFT, 9000 + n), **counted) for n in range(6)]
    rows += [flow(((CLIENT, 30000 + n), DNS), (SOFT, 9000 + n), protocol="udp") for n in range(4)]
    rows += [flow((("10.0.0.3", 1), WEB), (SOFT, 9006)), flow((("10.0.0.3", 1), ("203.0.113.9", 0)), protocol="icmp")]
    rows += [flow(((SOFT6, 9000), ("2001:db8::1", 53)), protocol="udp")]
    return flows(*rows)


def ranked(by: Ranked, most: int = 10) -> list[Rank]:
    table = busy_table()
    return rank_flows(table, np.arange(len(table)), place_flows(table, SliceIndex((AMS, AMS6))), by, most)


def test_ranking() -> None:
    assert ranked(Ranked.DESTINATIONS, 2) == [
        Rank(f"{SERVER}:443", 7, "tcp", 9000), Rank("203.0.113.2:53", 4, "udp", 0),
    ]  # fmt: skip
    assert Rank("203.0.113.9", 1, "icmp", 0) in ranked(Ranked.DESTINATIONS)
    assert [(one.name, one.flows) for one in ranked(Ranked.CLIENTS)] == [(CLIENT, 10), ("10.0.0.3", 2), (SOFT6, 1)]
    assert [(one.name, one.flows) for one in ranked(Ranked.SLICES)] == [("ams-1", 11), ("ams-6", 1)]
    uncounted = flows(flow(((CLIENT, 1), WEB)))
    (one,) = rank_flows(uncounted, np.arange(1), place_flows(uncounted, SliceIndex(())), Ranked.CLIENTS, 5)
    assert one.bytes is None
    assert rank_flows(uncounted, np.arange(0), place_flows(uncounted, SliceIndex(())), Ranked.CLIENTS, 5) == []


def test_rank_as_text() -> None:
    rank = Rank("203.0.113.1:443", 7, "tcp", 9000)
    assert rank_object(rank, Ranked.DESTINATIONS) == {
        "protocol": "tcp", "destination": "203.0.113.1:443", "flows": 7, "bytes": 9000,
    }  # fmt: skip
    assert rank_object(Rank("ams-1", 7), Ranked.SLICES) == {"slice": "ams-1", "flows": 7}
    assert rank_row(rank, 28) == ("7", "25.0%", "8.8 KiB", "tcp 203.0.113.1:443")
    assert [bytes_text(count) for count in (0, 1023, 1024, 5 << 40)] == ["0 B", "1023 B", "1.0 KiB", "5.0 TiB"]


def test_heat_of_single_ports() -> None:
    heat = heat_map(Observation(SliceIndex((AMS, AMS6)), flows=busy_table()), 0, 60, 1)
    assert [(row.protocol, row.destination, row.used) for row in heat.rows] == [("tcp", f"{SERVER}:443", 7)]
    assert heat.rows[0].shares == (1.0,) * 7 + (0.0,) * 3
    assert (heat.capacity, heat.piece_size, heat.others) == (10, 1, 1)
    assert list(heat_lines(heat, 80)) == [
        "slice ams-1  198.51.100.10  10 ports, one port a cell",
        "                    9000  9009",
        "tcp 203.0.113.1:443 @@@@@@@   | 7",
        "and 1 more",
    ]
    assert heat_object(heat)["destinations"][0]["shares"] == [1.0] * 7 + [0.0] * 3


@pytest.mark.parametrize("cells", [10, 43, 64, 128])
@pytest.mark.parametrize(
    "ranges",
    [
        (PortRange(10000, 12047),),
        (PortRange(7, 7), PortRange(100, 350), PortRange(351, 400), PortRange(65535, 65535)),
        PortSet(6, 8, 52).ranges(),
    ],
)
def test_heat_counts_every_port_once(ranges: tuple[PortRange, ...], cells: int) -> None:
    ports = [port for each in ranges for port in range(each.first, each.last + 1)]
    taken = random.Random(cells).sample(ports, len(ports) // 3)
    each = Slice("s", ip_address(SOFT), ranges, (Protocol.TCP,))
    table = flows(*(flow(((CLIENT, 1 + n), WEB), (SOFT, port)) for n, port in enumerate(taken * 2)))
    heat = heat_map(Observation(SliceIndex((each,)), flows=table), 0, cells, 5)
    assert len(heat.pieces) <= cells
    (row,) = heat.rows
    position = {port: number // heat.piece_size for number, port in enumerate(sorted(ports))}
    sizes = np.bincount(list(position.values()))
    used = np.bincount([position[port] for port in taken], minlength=len(sizes))
    assert row.shares == pytest.approx(used / sizes)
    assert row.used == len(taken)
    assert [piece.first for piece in heat.pieces] == sorted(ports)[:: heat.piece_size]
    assert heat.pieces[-1].last == max(ports)
    assert all(len(line) <= 128 + 40 for line in heat_lines(heat, 80))


def test_heat_of_an_unused_slice() -> None:
    heat = heat_map(Observation(SliceIndex((AMS,))), 0, 40, 5)
    assert (heat.rows, heat.others, len(heat.pieces)) == ((), 0, 10)
    assert list(heat_lines(heat, 80))[1:] == ["             9000  9009"]


def test_anything_at_all_is_shown() -> None:
    assert [shade_of(share) for share in (0.0, 0.001, 0.5, 0.99, 1.0)] == [" ", ".", "=", "%", "@"]
