"""Pools and what is held of them: as JSON objects, as lines, and drawn as the port space of an address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nat_rewriter.model.moves import Move
from nat_rewriter.model.pools import Block, Change, Deed, Holding, Pool, pool_object
from nat_rewriter.model.slices import Address, Slice
from nat_rewriter.report.json_lines import time_text

HOLDING_COLUMNS = ("slice", "host", "state", "since", "left")
FREE, RESTING = "·", "~"


def holding_object(pool: Pool, holding: Holding) -> dict[str, Any]:
    """Return what is held as the `pool` commands print it; ``left_s``: until the term, or the rest, ends.

    ``quarantine_s`` is there as long as it is not to be used yet.
    """
    quarantine = {"quarantine_s": round(holding.quarantine_s, 1)} if holding.quarantine_s else {}
    return {
        **_block_fields(pool, holding.block),
        "host": holding.host,
        "state": _state(holding),
        "since": time_text(holding.since),
        "left_s": round(holding.left_s, 1),
        **quarantine,
    }


def holding_row(holding: Holding) -> tuple[str, ...]:
    """Return what is held as a row under HOLDING_COLUMNS; left is what is left of its state."""
    since = holding.since.strftime("%Y-%m-%d %H:%M:%S")
    left_s = holding.quarantine_s or holding.left_s
    return str(holding.block), holding.host, _state(holding), since, f"{left_s:.0f}s"


def change_object(pool: str, change: Change) -> dict[str, Any]:
    """Return one entry of a pool's history as JSON has it."""
    fields = {
        "time": time_text(change.time), "pool": pool, "what": change.what, "address": str(change.block.address),
        "ports": str(change.block.ports), "host": change.host, "to": change.to,
    }  # fmt: skip
    return {name: value for name, value in fields.items() if value is not None}


def change_line(change: Change) -> str:
    """Return one entry of a pool's history as a line."""
    words = f"{time_text(change.time)} {change.what} {change.block} {change.host}"
    return f"{words} to {change.to}" if change.to else words


def move_object(pool: Pool, move: Move, took_s: float) -> dict[str, Any]:
    """Return a move that is done as JSON has it: the slice, both hosts, and what became of its flows."""
    return {
        **_block_fields(pool, move.block),
        "host": move.giver,
        "to": move.taker,
        "flows": move.count.sent - move.count.clashed,
        "sockets": move.count.sockets,
        "left_out": move.count.left_out,
        "clashed": move.count.clashed,
        "detail": move.detail,
        "took_s": round(took_s, 3),
    }


def move_line(move: Move, took_s: float) -> str:
    """Return a move that is done as a line."""
    count = move.count
    words = f"{move.block} {move.giver} to {move.taker}: {count.sent - count.clashed} flows in {took_s:.2f} s"
    words += f"; flows of sockets, ended: {count.sockets} ({move.detail})" if count.sockets else ""
    words += f"; with a helper of conntrack, left out: {count.left_out}" if count.left_out else ""
    return words + (f"; whose ports were in use, left out: {count.clashed}" if count.clashed else "")


def deed_object(deed: Deed) -> dict[str, Any]:
    """Return what the agent did as JSON has it; absent fields are left out."""
    fields = {
        "time": time_text(deed.time), "event": deed.what, "pool": deed.pool,
        "address": str(deed.block.address) if deed.block else "", "ports": str(deed.block.ports) if deed.block else "",
        "detail": deed.detail,
    }  # fmt: skip
    return {name: value for name, value in fields.items() if value}


def deed_line(deed: Deed) -> str:
    """Return what the agent did as a line."""
    words = (time_text(deed.time), deed.what, deed.pool, str(deed.block or ""))
    return " ".join(word for word in words if word) + (f": {deed.detail}" if deed.detail else "")


def pool_state_object(pool: Pool, holdings: Sequence[Holding]) -> dict[str, Any]:
    """Return a pool, its counts and everything that is held of it or rests."""
    counts = count_states(pool, holdings)
    return pool_object(pool) | {"slices": counts, "holdings": [holding_object(pool, each) for each in holdings]}


def count_states(pool: Pool, holdings: Sequence[Holding]) -> dict[str, int]:
    """Return how many slices of a pool are held, rest and are free."""
    resting = sum(each.resting for each in holdings)
    total = len(pool.addresses) * len(pool.ports) // pool.slice_size
    return {"held": len(holdings) - resting, "resting": resting, "free": total - len(holdings)}


def cells(pool: Pool, address: Address, holdings: Mapping[Block, Holding], width: int) -> list[Holding | None]:
    """Return the port space of an address in at most ``width`` cells; one of several blocks shows the first taken."""
    blocks = list(pool.blocks_of(address))
    size = -(-len(blocks) // width)
    groups = (blocks[start : start + size] for start in range(0, len(blocks), size))
    return [next((holdings[block] for block in group if block in holdings), None) for group in groups]


def slice_text(owned: Slice) -> str:
    """Return a slice as a configuration has it."""
    protocols = ", ".join(f'"{each.value}"' for each in owned.protocols)
    ports = ", ".join(f'"{each}"' for each in owned.ranges)
    return (
        f'[[slice]]\nname = "{owned.name}"\naddress = "{owned.address}"\nports = [{ports}]\nprotocols = [{protocols}]\n'
    )


def _block_fields(pool: Pool, block: Block) -> dict[str, str]:
    owned = pool.slice_of(block)
    return {"pool": pool.name, "slice": owned.name, "address": str(block.address), "ports": str(block.ports)}


def _state(holding: Holding) -> str:
    if holding.quarantine_s:
        return "quarantined"
    return "resting" if holding.resting else "held"
