"""Configurations as somebody might write them who wants natctl to fail, and what the kernel makes of those it takes.

A document is sound, or sound but for a few faults; what is put into it are values at the edges, values of another kind,
and text that means something to nft, TOML, Python's formatting, a shell or a terminal.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from test_generated_policies import documents

from nat_rewriter.config import check_document, read_policy
from nat_rewriter.errors import ConfigError, NftError
from nat_rewriter.kernel import nft_listing
from nat_rewriter.kernel.nft import Worker
from nat_rewriter.listing import ordered_listing
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.ruleset import LiveTable
from nat_rewriter.plan import plan
from nat_rewriter.render import render, ruleset_text

Document = dict[str, Any]
Draw = Callable[[st.SearchStrategy[Any]], Any]

HOSTILE_TEXTS = (
    "}; flush ruleset; table inet x {", '"; flush ruleset #', "natctl; delete table inet canary", "a }\n\tdrop", "\n",
    "\r\n", "# comment", 'include "/etc/passwd"', "define x = 1", "$x", "@soft4", "\\", "\\\n", '"', "'", "`id`",
    "$(id)", "{{ 7 * 7 }}", "{% include 'x' %}", "%s%n", "{0.__class__}",
    "\x00", "\x1b[2J", "\u202e", "é", "ams\u00a01",
    "\ud800", "", " ", "a" * 200, "*", "eth*", "eth0 accept", "0.0.0.0/0, ::/0", "10.0.0.2-10.0.0.9", "10.0.0.1/24",
    "010.0.0.1", "0x0a000001", "1.2.3", "::ffff:198.51.100.10", "fe80::1%eth0", "198.51.100.10 . 1-65535", "0", "0-0",
    "65536", "9009-9000", "9000-9009-9010", "９０００",
    "-1", "1-65535", "1e3", "+9000", "9000 - 9009", "all", "tcp, udp",
    "filter", "chain", "table", "natctl", "log", "last", "_", "x\t", "..", "/", "../../etc", "10.0.0.2:0", "[::]:80",
    "10.0.0.2:80; drop", "[10.0.0.2]:80", "confine", "drop", "refuse",
)  # fmt: skip
_texts = st.sampled_from(HOSTILE_TEXTS)
_interfaces = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=16)
_tables = st.from_regex(re.compile(r"[A-Za-z][A-Za-z0-9_]{0,32}", re.ASCII), fullmatch=True)
_numbers = (
    st.sampled_from((-(2**63), -1, 0, 1, 99, 100, 65535, 65536, 2**32 - 1, 2**32, 2**64, 10**400)) | st.integers()
)
_scalars = _texts | _interfaces | _numbers | st.booleans() | st.floats() | st.text(max_size=8) | st.dates()
_values = (
    _scalars | st.lists(_scalars, max_size=3) | st.dictionaries(_texts | st.text(max_size=5), _scalars, max_size=3)
)
KEYS = """
    version controller slice snat dnat pool store route proxy timeouts table coexist guard srcnat_priority name address
    dstnat_priority ports psid protocols socket_ports iifname oifname source destination mark slices spread exclude
    exclude_source timestamps to tcp_close
"""
_keys = st.sampled_from(KEYS.split())

Place = tuple[Any, Any]  # a container, and the key or index in it


def places(container: Any) -> Iterator[Place]:
    """Yield every place in a document that has a value."""
    for key, value in list(container.items() if isinstance(container, dict) else enumerate(container)):
        yield container, key
        if isinstance(value, dict | list):
            yield from places(value)


def _spoil(draw: Draw, document: Document) -> None:
    """Change one thing in a document."""
    container, key = draw(st.sampled_from(list(places(document))))
    how = draw(st.sampled_from(("replace", "replace", "text", "delete", "add", "repeat", "interface", "table")))
    if how in ("replace", "text"):
        container[key] = draw(_values if how == "replace" else _texts)
    elif how == "delete":
        del container[key]
    elif how == "add" and isinstance(container, dict):
        container[draw(_keys | _texts)] = draw(_values)
    elif how == "repeat" and isinstance(container, list):
        container.append(copy.deepcopy(container[key]))
    elif how == "interface" and isinstance(document.get("snat"), list) and document["snat"]:
        document["snat"][0] = {**_table_of(document["snat"][0]), "iifname": draw(_interfaces)}
    elif how == "table":
        document["controller"] = {**_table_of(document.get("controller")), "table": draw(_tables)}


def _table_of(value: object) -> Document:
    return value if isinstance(value, dict) else {}


@st.composite
def hostile_documents(draw: Draw) -> Document:
    """Documents that are sound but for up to three faults."""
    document: Document = copy.deepcopy(draw(documents(2, 2)))
    for _ in range(draw(st.integers(0, 3))):
        if document:
            _spoil(draw, document)
    return document


def toml_of(document: Mapping[str, Any]) -> bytes | None:
    """Return a document as TOML, None where it holds what TOML cannot."""
    try:
        return "".join(f"{json.dumps(key)} = {_toml_value(value)}\n" for key, value in document.items()).encode()
    except (TypeError, UnicodeEncodeError):
        return None


def _toml_value(value: object) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{json.dumps(key)} = {_toml_value(inner)}' for key, inner in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, float):
        return repr(value)  # inf and nan are TOML as they are Python
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def read(document: Document) -> Policy | ConfigError:
    """Return what natctl makes of a document, as a file where it can be one; every other exception is a fault."""
    content = toml_of(document)
    try:
        return check_document(document, "hostile.toml") if content is None else read_policy(content, "hostile.toml")
    except ConfigError as error:
        return error


CANARY = "table ip canary {\n\tchain c {\n\t\tmeta mark 0x0000002a drop\n\t}\n}\n"


class Kernel:
    """Loads the rulesets of many policies at once in a namespace of its own, and compares what it lists.

    ``faults`` has a sentence for each policy that the kernel refused or lists as something else.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._live, self._skeletons = Worker(["--scratch"], 120.0), Worker(["--scratch"], 120.0)
        self._pending: dict[str, Policy] = {}
        self.loaded = 0
        self.faults: list[str] = []

    def close(self) -> None:
        """End the namespaces."""
        self._live.close()
        self._skeletons.close()

    def take(self, policy: Policy) -> None:
        """Take in a policy, to be loaded with others; its table has its own name, or a numbered one for the default."""
        table = policy.controller.table
        if table == "natctl":
            table = f"natctl_{len(self._pending)}"
        if table in self._pending or len(self._pending) == self._at_once:
            self.flush()
        self._pending[table] = replace(policy, controller=replace(policy.controller, table=table))

    def flush(self) -> None:
        """Load and compare what was taken in."""
        pending, self._pending = self._pending, {}
        if pending:
            self._judge(pending)

    def _judge(self, policies: dict[str, Policy]) -> None:
        try:
            self.faults += self._compare(policies)
            self.loaded += len(policies)
        except (NftError, AssertionError) as error:
            if len(policies) == 1:
                self.faults.append(f"{error}: {policies}")
                return
            names = list(policies)
            for half in (names[: len(names) // 2], names[len(names) // 2 :]):
                self._judge({name: policies[name] for name in half})

    def _compare(self, policies: dict[str, Policy]) -> list[str]:
        wanted = {name: render(policy) for name, policy in policies.items()}
        _answered(self._skeletons, text="\n".join(("flush ruleset", *(one.skeleton for one in wanted.values()))))
        _answered(self._live, text="\n".join(("flush ruleset", CANARY, *map(ruleset_text, policies.values()))))
        assert self._tables() == {"canary", *policies}, "other tables than those that were rendered"
        assert _answered(self._live, text="list table ip canary") == CANARY, "another table was changed"
        return [
            f"not listed as it was rendered: {policies[name]}"
            for name, ruleset in wanted.items()
            if plan(ruleset, self._skeleton(name), self._table(name))
        ]

    def _tables(self) -> set[str]:
        return {line.split()[2] for line in _answered(self._live, text="list tables").splitlines()}

    def _skeleton(self, table: str) -> str:
        listing = _answered(self._skeletons, text=f"list table inet {table}", stateless=True, terse=True)
        return ordered_listing(listing)

    def _table(self, table: str) -> LiveTable:
        listing = _answered(self._live, text=f"list table inet {table}", stateless=True, terse=True)
        elements = json.loads(_answered(self._live, text=f"list table inet {table}", json=True))["nftables"]
        ranges = nft_listing.range_maps(listing)
        return LiveTable(table, ordered_listing(listing), nft_listing.elements_of(elements, ranges))


def _answered(worker: Worker, **request: object) -> str:
    answer = worker.ask(**request)
    if answer["code"] != 0:
        raise NftError("load ruleset", 22, str(answer["error"])[:300])
    return str(answer["output"])
