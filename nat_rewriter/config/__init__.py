"""TOML -> checked policy; every problem at once, with file and key path. docs/reference.toml has every key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nat_rewriter.config import values
from nat_rewriter.config.dnat import read_dnat
from nat_rewriter.config.section import Report, Section
from nat_rewriter.config.slices import SlicesByName, read_slices
from nat_rewriter.config.snat import read_snat
from nat_rewriter.config.source import Document, parse_document, read_bytes
from nat_rewriter.errors import ConfigError
from nat_rewriter.model.policy import Coexist, Controller, Guard, Policy, Timeouts
from nat_rewriter.model.slices import Slice

if TYPE_CHECKING:
    from nat_rewriter.model.inbound import Inbound
    from nat_rewriter.model.pools import Demand, Pool, StoreAddress
    from nat_rewriter.model.proxies import Proxy
    from nat_rewriter.model.route import Route

__all__ = ["check_document", "read_policy"]

# The kernel takes source NAT only after conntrack (-200), and the guard looks at what it made at 300.
FIRST_PRIORITY = -199
LAST_PRIORITY = 299
LONGEST_TIMEOUT_S = 2_000_000  # in milliseconds it still fits the kernel's signed 32 bits


def read_policy(source: bytes | Path, name: str | None = None, *, needs_slices: bool = True) -> Policy:
    """Return the policy that a TOML file, or its content, means.

    ``name`` stands for the file in problems. Raises ConfigError with every problem of the file; that it has neither
    slices nor pools is one unless ``needs_slices`` is false.
    """
    if isinstance(source, Path):
        content, file = read_bytes(source), name or str(source)
    else:
        content, file = source, name or "<configuration>"
    return check_document(parse_document(content, file), file, needs_slices=needs_slices)


def check_document(document: Document, file: str, *, needs_slices: bool = True) -> Policy:
    """Return the policy that a parsed TOML document means, as :func:`read_policy` does."""
    report = Report(file)
    root = Section(report, "", document)
    root.required("version", values.integer(1, 1, 1))
    settings = root.table("controller")
    controller = _read_controller(settings) if settings else Controller()
    coexist = controller.coexist if settings and settings.sound("coexist") else None
    slices = read_slices(root, coexist, needed=needs_slices and not root.has("pool"))
    owned = tuple(each for each in slices.values() if each)
    pools, store, inbound = _read_pools(root, owned)
    snat = read_snat(root, slices, pools)
    dnat = read_dnat(root, slices)
    route = _read_route(root, slices)
    if settings and route and controller.local_mark & route.mask:
        settings.refuse("local_mark", "a bit that is not in the mask of [route]")
    proxies = _read_proxies(root, slices, controller.coexist)
    root.refuse_unknown()
    if report.problems:
        raise ConfigError(report.problems)
    return Policy(
        controller, owned, tuple(snat), tuple(dnat), pools=pools, store=store, inbound=inbound, route=route,
        proxies=proxies,
    )  # fmt: skip


# Most configurations have none of what follows: what reads it is loaded where one has.


def _read_pools(
    root: Section, owned: Sequence[Slice]
) -> tuple[dict[Pool, Demand], StoreAddress | None, Inbound | None]:
    if not root.has_any("pool", "store", "inbound"):
        return {}, None, None
    from nat_rewriter.config.inbound import read_inbound
    from nat_rewriter.config.pools import read_pools, read_store

    pools, store = read_pools(root, owned), read_store(root)
    return pools, store, read_inbound(root, pools)


def _read_route(root: Section, slices: SlicesByName) -> Route | None:
    if not root.has_any("route"):
        return None
    from nat_rewriter.config.route import read_route

    return read_route(root, slices)


def _read_proxies(root: Section, slices: SlicesByName, coexist: Coexist) -> tuple[Proxy, ...]:
    if not root.has_any("proxy"):
        return ()
    from nat_rewriter.config.proxy import read_proxies

    return tuple(read_proxies(root, slices, coexist))


def _read_controller(section: Section) -> Controller:
    usual = Controller()
    controller = Controller(
        table=section.one("table", values.table_name, usual.table),
        coexist=section.one("coexist", values.choice(Coexist), usual.coexist),
        guard=section.one("guard", values.choice(Guard), usual.guard),
        srcnat_priority=section.one(
            "srcnat_priority", values.integer(FIRST_PRIORITY, LAST_PRIORITY, 100), usual.srcnat_priority
        ),
        dstnat_priority=section.one(
            "dstnat_priority", values.integer(FIRST_PRIORITY + 1, LAST_PRIORITY, -100), usual.dstnat_priority
        ),
        local_mark=section.one("local_mark", values.bit, usual.local_mark),
    )
    timeouts = _read_timeouts(section)
    section.refuse_unknown()
    return replace(controller, timeouts=timeouts)


def _read_timeouts(section: Section) -> Timeouts | None:
    """Return the timeouts of slices; None where the table is absent."""
    inner = section.table("timeouts")
    if inner is None or not section.has("timeouts"):
        return None
    usual = asdict(Timeouts())
    given = {
        key: inner.one(key, values.integer(1, LONGEST_TIMEOUT_S, default), default) for key, default in usual.items()
    }
    inner.refuse_unknown()
    return Timeouts(**given)
