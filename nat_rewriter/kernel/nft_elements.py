"""Elements of sets as the kernel dumps them, as text in the spelling of :mod:`nat_rewriter.render`."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

from nat_rewriter.errors import DecodeError
from nat_rewriter.kernel._core._native import ffi, lib
from nat_rewriter.kernel.netlink import attribute, nested

Elements = dict[str, str]

# NFTA_SET_*, and the flags of sets.
_FLAGS, _KEY_TYPE, _DATA_TYPE, _DATA_LENGTH, _DESCRIPTION = 3, 4, 6, 7, 9
_INTERVAL, _MAP, _OBJECT_MAP = 0x4, 0x8, 0x40
_VERDICT = 0xFFFFFF00  # NFT_DATA_VERDICT
_TYPE_BITS = 6
# The numbers of nft's own types (src/datatype.c), of which the kernel keeps a set's six bits a field: the lone integers
# of natctl are echo ids, whose length only a concatenation tells.
_FIELDS = {7: lib.NR_FIELD_IPV4, 8: lib.NR_FIELD_IPV6, 12: lib.NR_FIELD_PROTOCOL, 13: lib.NR_FIELD_NUMBER}
_INTEGER = 4
_WIDTHS = {lib.NR_FIELD_IPV6: 16}
_REGISTER = 4
_PROTOCOLS = {"tcp": 6, "udp": 17}
# NFTA_DATA_*, NFTA_VERDICT_*, and enum nft_verdicts.
_OF_VALUE, _OF_VERDICT, _VERDICT_CODE, _VERDICT_CHAIN = 1, 2, 1, 2
_VERDICTS = {"goto": -4, "jump": -3}


class Layout(NamedTuple):
    """How a set's elements are laid out: struct nr_set_layout, and what Python has to know of it."""

    native: Any
    is_map: bool
    is_sorted: bool  # boundaries of intervals
    is_ranged: bool  # keys of several fields, each of them a range
    is_ipv6: bool


def layout_of(described: Mapping[int, bytes]) -> Layout | None:
    """Return the layout of a set of these attributes, None where it is of types that are not known here."""
    flags = _number(described, _FLAGS)
    if flags & _OBJECT_MAP:
        return None
    key = _fields(_number(described, _KEY_TYPE), integers=_integer_is_echo_id(described))
    data, kind = _data(described) if flags & _MAP else ([], lib.NR_DATA_NONE)
    if not key or data is None:
        return None
    is_interval = bool(flags & _INTERVAL)
    is_sorted = is_interval and len(key) == 1
    if is_sorted and key[0] not in (lib.NR_FIELD_IPV4, lib.NR_FIELD_IPV6):
        return None
    native = ffi.new(
        "struct nr_set_layout *",
        {"key": key, "key_fields": len(key), "data": data, "data_fields": len(data), "data_kind": kind,
         "sorted": is_sorted},
    )  # fmt: skip
    return Layout(native, bool(flags & _MAP), is_sorted, is_interval and not is_sorted, key[0] == lib.NR_FIELD_IPV6)


def decode_elements(messages: bytes, layout: Layout) -> Elements | None:
    """Return the elements in netlink messages, key -> data; None where one has a form that only nft knows.

    Raises DecodeError.
    """
    room = len(messages) * 2 + 4096
    written = ffi.new("size_t *")
    while True:
        text = ffi.new("char[]", room)
        problem = lib.nr_element_lines(messages, len(messages), layout.native, text, room, written)
        if problem != lib.NR_ELEMENTS_NO_ROOM:
            break
        room *= 4
    if problem == lib.NR_ELEMENTS_UNKNOWN:
        return None
    if problem:
        raise DecodeError("list ruleset", "an element is not as the kernel writes them", len(messages))
    lines = ffi.unpack(text, written[0]).decode().split("\n")[:-1]
    found = zip(lines[::2], lines[1::2], strict=True) if layout.is_map else ((line, "") for line in lines)
    return dict(_intervals(sorted(found), is_ipv6=layout.is_ipv6)) if layout.is_sorted else dict(found)


def encode_key(key: str) -> bytes:
    """Return a key in the spelling of nft as the kernel has it, of a range the first value.

    Each field of a concatenation fills registers of four bytes.
    """
    return _fields_encoded([field.partition("-")[0].partition("/")[0] for field in key.split(" . ")])


def encode_key_end(key: str) -> bytes:
    """Return the same with the last value of each range."""
    return _fields_encoded([field.rpartition("-")[2] for field in key.split(" . ")])


def encode_data(data: str, layout: Layout) -> bytes:
    """Return the data of a map's element as the attribute that the kernel takes: a value, a range, or a verdict."""
    kind = layout.native.data_kind
    if kind == lib.NR_DATA_VERDICT:
        word, _, chain = data.partition(" ")
        code = attribute(_VERDICT_CODE, _VERDICTS[word].to_bytes(4, signed=True))
        return nested(_OF_VERDICT, code, attribute(_VERDICT_CHAIN, chain.encode() + b"\0"))
    return attribute(_OF_VALUE, encode_key(data) + (encode_key_end(data) if kind == lib.NR_DATA_RANGES else b""))


def _fields_encoded(values: list[str]) -> bytes:
    fields = [_encoded(value) for value in values]
    return fields[0] if len(fields) == 1 else b"".join(field + bytes(-len(field) % _REGISTER) for field in fields)


def _encoded(field: str) -> bytes:
    if field in _PROTOCOLS:
        return bytes((_PROTOCOLS[field],))
    if field.isdecimal():
        return int(field).to_bytes(2)
    return socket.inet_pton(socket.AF_INET6 if ":" in field else socket.AF_INET, field)


def _intervals(boundaries: list[tuple[str, str]], *, is_ipv6: bool) -> Iterator[tuple[str, str]]:
    """Yield what lies between boundaries, each of them hexadecimal and then 1 where one starts and 0 where one ends."""
    bits = 128 if is_ipv6 else 32
    for place, (boundary, data) in enumerate(boundaries):
        # What has a counter or a timeout says so after the digit.
        digits = bits // 4
        if boundary[digits] == "0":
            continue
        after = boundaries[place + 1][0][:digits] if place + 1 < len(boundaries) else None
        first, last = int(boundary[:digits], 16), (int(after, 16) if after else 1 << bits) - 1
        yield _span(first, last, is_ipv6=is_ipv6) + boundary[digits + 1 :], data


def _span(first: int, last: int, *, is_ipv6: bool) -> str:
    """Return addresses as nft lists them: one as it is, a network as such, others as a range."""
    kind = IPv6Address if is_ipv6 else IPv4Address
    if first == last:
        return str(kind(first))
    size = last - first + 1
    if size & (size - 1) == 0 and first % size == 0:
        return f"{kind(first)}/{kind(first).max_prefixlen - size.bit_length() + 1}"
    return f"{kind(first)}-{kind(last)}"


def _data(described: Mapping[int, bytes]) -> tuple[list[int] | None, int]:
    kind = _number(described, _DATA_TYPE)
    if kind == _VERDICT:
        return [], lib.NR_DATA_VERDICT
    fields = _fields(kind, integers=False)
    if not fields:
        return None, lib.NR_DATA_NONE
    width, length = sum(_WIDTHS.get(field, _REGISTER) for field in fields), _number(described, _DATA_LENGTH)
    if length == 2 * width:
        return fields, lib.NR_DATA_RANGES
    return (fields, lib.NR_DATA_FIELDS) if length == width or len(fields) == 1 else (None, lib.NR_DATA_NONE)


def _fields(kind: int, *, integers: bool) -> list[int]:
    """Return the fields of a type, none where one of them is not known here."""
    known = {**_FIELDS, _INTEGER: lib.NR_FIELD_NUMBER} if integers else _FIELDS
    numbers: list[int] = []
    while kind:
        numbers.insert(0, kind & ((1 << _TYPE_BITS) - 1))
        kind >>= _TYPE_BITS
    return [known[number] for number in numbers] if all(number in known for number in numbers) else []


def _integer_is_echo_id(described: Mapping[int, bytes]) -> bool:
    """Tell whether the description of a concatenation gives its last field, an integer, two bytes."""
    description = described.get(_DESCRIPTION, b"")
    return description.endswith(b"\0\0\0\2")


def _number(described: Mapping[int, bytes], kind: int) -> int:
    return int.from_bytes(described.get(kind, b""))
