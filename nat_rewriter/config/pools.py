"""``[[pool]]`` and ``[store]``: addresses whose ports hosts lease in slices of one size, and where that is kept."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nat_rewriter.config import values
from nat_rewriter.config.section import Section, refuse_repeated_names
from nat_rewriter.config.values import Unexpected
from nat_rewriter.model.pools import DEFAULT_STORE, Demand, Pool, StoreAddress
from nat_rewriter.model.slices import Address, PortRange, Protocol, Slice

_WORD = re.compile(r"[A-Za-z0-9_.-]{1,48}")
_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<name>[A-Za-z0-9.-]+)):(?P<port>[0-9]{1,5})")
_PORTS = PortRange(1024, 65535)


def read_pools(root: Section, slices: Sequence[Slice]) -> dict[Pool, Demand]:
    """Return the pools of a file, and how this host follows their use.

    No address of one is in another, or in a slice of the file that is none of the pool.
    """
    sections = root.tables("pool")
    read = [(section, *_read_pool(section)) for section in sections]
    refuse_repeated_names((section, pool.name if pool else None) for section, pool, _ in read)
    taken: dict[Address, str] = {}
    for section, pool, _ in read:
        for each in slices:
            if pool and each.address in pool.addresses and not pool.gave(each):
                taken.setdefault(each.address, f'the slice "{each.name}"')
        for index, address in enumerate(pool.addresses if pool else ()):
            if address in taken:
                section.refuse("addresses", f"an address that {taken[address]} does not have", index)
            taken[address] = f'the pool "{pool.name if pool else ""}"'
    return {pool: demand for _, pool, demand in read if pool}


def _read_pool(section: Section) -> tuple[Pool | None, Demand]:
    usual = Pool("", (), _PORTS, 1024)
    name = section.required("name", values.name)
    addresses = section.distinct("addresses", values.host_address, single=True)
    if not section.has("addresses"):
        section.refuse("addresses", 'one or more addresses, e.g. ["198.51.100.10"]')
    families = {address.version for address in addresses.values()}
    if len(families) > 1:
        section.refuse("addresses", "addresses of one family: a pool for IPv4 and one for IPv6")
    size = section.required("slice_size", _power_of_two)
    ports = section.one("ports", values.port_range, _PORTS)
    protocols = set(section.distinct("protocols", values.choice(Protocol)).values()) or set(usual.protocols)
    per_host = section.one("per_host", values.integer(1, 65536, 4), usual.per_host)
    ttl_s = section.one("ttl_s", values.integer(5, 86400, 30), usual.ttl_s)
    hold_down_s = section.one("hold_down_s", values.integer(0, 86400, 120), usual.hold_down_s)
    demand = _read_demand(section, per_host)
    section.refuse_unknown()
    if size is not None and section.sound("ports") and (ports.first % size or (ports.last + 1) % size):
        section.refuse("ports", f"a range that begins at a multiple of slice_size, {size}, and ends just before one")
    if name is None or size is None or not section.clean:
        return None, demand
    ordered = tuple(protocol for protocol in Protocol if protocol in protocols)
    return Pool(name, tuple(addresses.values()), ports, size, ordered, per_host, ttl_s, hold_down_s), demand


def _read_demand(section: Section, per_host: int) -> Demand:
    usual = Demand()
    demand = Demand(
        least=section.one("least", values.integer(0, 65536, 1), usual.least),
        high_water=section.one("high_water", _share, usual.high_water),
        low_water=section.one("low_water", _share, usual.low_water),
        drain_s=section.one("drain_s", values.integer(0, 86400, 60), usual.drain_s),
    )
    if section.has("least") and demand.least > per_host:
        section.refuse("least", f"at most per_host, {per_host}")
    if demand.low_water >= demand.high_water:
        key = "low_water" if section.has("low_water") else "high_water"
        section.refuse(key, f"low_water, {demand.low_water}, below high_water, {demand.high_water}")
    return demand


def _share(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
        raise Unexpected("a share above 0 and up to 1, e.g. 0.8")
    return float(value)


def _power_of_two(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 32768 or value & (value - 1):
        raise Unexpected("a power of two from 1 to 32768, e.g. 1024")
    return value


def read_store(root: Section) -> StoreAddress | None:
    """Return where pools are kept; None where nothing is said of it."""
    section = root.table("store")
    if section is None or not root.has("store"):
        return None
    url = section.one("url", _url, DEFAULT_STORE)
    store = StoreAddress(
        url.kind, url.path, url.endpoints,
        ca=section.one("ca", values.text, None),
        certificate=section.one("certificate", values.text, None),
        key=section.one("key", values.text, None),
        user=section.one("user", values.text, None),
        password_file=section.one("password_file", values.text, None),
        prefix=section.one("prefix", _prefix, url.prefix),
        timeout_s=section.one("timeout_s", values.integer(1, 60, 3), url.timeout_s),
    )  # fmt: skip
    section.refuse_unknown()
    _refuse_what_does_not_fit(section, store)
    return store


def _refuse_what_does_not_fit(section: Section, store: StoreAddress) -> None:
    for key, other in (
        ("certificate", "key"),
        ("key", "certificate"),
        ("user", "password_file"),
        ("password_file", "user"),
    ):
        if section.has(key) and not section.has(other):
            section.refuse(key, f"{other} beside {key}")
    for key in ("ca", "certificate", "key", "user", "password_file", "prefix", "timeout_s"):
        if store.kind == "sqlite" and section.has(key) and section.sound("url"):
            section.refuse(key, f'no {key} with "sqlite:", which is a file')


def _url(value: object) -> StoreAddress:
    form = '"sqlite:PATH" with an absolute path, or "etcd:HOST:PORT,HOST:PORT", e.g. "etcd:192.0.2.1:2379"'
    kind, _, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind == "sqlite" and rest.startswith("/") and "\0" not in rest:
        return StoreAddress("sqlite", rest)
    found = [_HOST.fullmatch(endpoint) for endpoint in rest.split(",")]
    if kind != "etcd" or not all(match and 1 <= int(match["port"]) <= 65535 for match in found):
        raise Unexpected(form)
    return StoreAddress("etcd", endpoints=tuple((m["v6"] or m["name"], int(m["port"])) for m in found if m))


def _prefix(value: object) -> str:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise Unexpected('1 to 48 letters, digits, "_", "." or "-", e.g. "natctl"')
    return value
