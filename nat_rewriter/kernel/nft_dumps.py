"""What the kernel says of a table itself, over netlink: its skeleton as a value to compare, and its elements as text.

Messages are those of linux/netfilter/nf_tables.h. nft reads the same ones, and takes far longer to print them.
"""

from __future__ import annotations

import errno
import functools
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from nat_rewriter.errors import DecodeError, NatctlError, NetlinkError, UnsupportedFeature
from nat_rewriter.kernel.netlink import attribute, message, nested, refusal
from nat_rewriter.kernel.nft_elements import Elements, Layout, decode_elements, encode_key, layout_of

AskKernel = Callable[[Sequence[bytes]], bytes]
Attributes = list[tuple[int, bytes]]

DOING = "list ruleset"
_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_TABLE, _CHAIN, _RULE, _SET, _ELEMENTS, _GENERATION, _OBJECT, _FLOWTABLE = 1, 4, 7, 10, 13, 16, 19, 23  # NFT_MSG_GET*
_INET = 1
_ACK, _DUMP, _DUMP_CHANGED = 0x4, 0x300, 0x10
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_FAMILY = struct.Struct(">BBH")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF
_TRIES = 10  # other programs may change their own tables meanwhile

# Attributes that say where an object is or what happened to it, and not what it is: handles, uses, counts. One that a
# later kernel adds is compared as well; at worst nft is asked for more.
_PASSING = {_TABLE: {3, 4, 5}, _CHAIN: {2, 6, 8, 9}, _RULE: {3, 6, 8}, _SET: {10, 14, 16, 20}, _OBJECT: {5, 6, 7}}
_OF_TABLE = 1  # NFTA_CHAIN_TABLE and its like
_SET_NAME, _SET_FLAGS, _SET_ANONYMOUS = 2, 3, 0x1
_RULE_EXPRESSIONS, _EXPRESSION_NAME, _EXPRESSION_DATA, _LOOKUP_SET = 4, 1, 2, 1
_ELEMENT_LIST, _GENERATION_ID = 3, 1


class Message(NamedTuple):
    """One netlink message: its type and flags, and what follows the headers of netlink and nfnetlink."""

    kind: int
    flags: int
    content: bytes
    whole: bytes


class DumpedTable(NamedTuple):
    """A table: what it is but for the elements of its named sets, to be compared; those elements; the ruleset's number.

    ``elements`` is None where a set is of a type, or an element of a form, that only nft knows how to write.
    """

    skeleton: object
    elements: dict[str, dict[str, str]] | None
    generation: int


def read_table(ask: AskKernel, table: str) -> DumpedTable | None:
    """Return a table of family inet as it is at one moment, None where there is none.

    Raises PermissionNeeded, NetlinkError, DecodeError.
    """
    for _ in range(_TRIES):
        first = _asked(ask, _skeleton_questions(table))
        if first is None:
            return None
        sets = [dict(attributes(one.content)) for one in first[3]]
        second = _asked(ask, [*(elements_question(table, one[_SET_NAME]) for one in sets), generation_question()])
        if second is not None and not _changed(first, second):
            held = {one[_SET_NAME]: answers for one, answers in zip(sets, second, strict=False)}
            return DumpedTable(_skeleton(table, first, held), _elements(sets, held), _generation(first[0]))
    raise NetlinkError(DOING, errno.EAGAIN, "rulesets change faster than this one can be read")


def read_generation(ask: AskKernel) -> int:
    """Return how many rulesets this network namespace has had: another number is another ruleset of some table.

    Raises PermissionNeeded, NetlinkError, DecodeError.
    """
    return _generation((_asked(ask, [generation_question()]) or [[]])[0])


def _generation(answer: Sequence[Message]) -> int:
    found = [value for one in answer for kind, value in attributes(one.content) if kind == _GENERATION_ID]
    if not found:
        raise DecodeError(DOING, "no number of the ruleset in the answer", len(answer))
    return int.from_bytes(found[0])


def read_layouts(ask: AskKernel, table: str) -> dict[str, Layout | None]:
    """Return how the elements of each named set of a table are laid out; None where only nft knows. Raises as above."""
    answers = _asked(ask, [_question(_SET, _DUMP, (_OF_TABLE, _name(table)))]) or [[]]
    described = [dict(attributes(one.content)) for one in answers[0]]
    return {_text(one[_SET_NAME]): layout_of(one) for one in described if not _is_anonymous(one)}


def find_elements(
    ask: AskKernel, table: str, wanted: Mapping[str, Sequence[str]], layouts: Mapping[str, Layout]
) -> dict[str, Elements] | None:
    """Return those of the wanted elements, by set and key, that are there; a range is found by its first value.

    None where an element is of a form that only nft knows. No set may be sorted. Raises as :func:`read_table`.
    """
    questions = [_element_question(table, name, key) for name, keys in wanted.items() for key in keys]
    answers = iter(_asked(ask, questions, all_there=False) or ())
    found: dict[str, Elements] = {}
    for name, keys in wanted.items():
        mine = [one.whole for _ in keys for one in next(answers, ())]
        elements = decode_elements(b"".join(map(_padded, mine)), layouts[name])
        if elements is None:
            return None
        found[name] = elements
    return found


def generation_question() -> bytes:
    """Return the question for the number of rulesets that this network namespace has had."""
    return _question(_GENERATION, _ACK)


def elements_question(table: str, name: bytes) -> bytes:
    """Return the question for the elements of a set, which is named as the kernel does: with a NUL at its end."""
    return _question(_ELEMENTS, _DUMP, (1, _name(table)), (2, name))


def attributes(content: bytes) -> Attributes:
    """Return the attributes of one level in their order. Raises DecodeError."""
    found: Attributes = []
    place = 0
    while place < len(content):
        length, kind = _ATTRIBUTE.unpack_from(content, place) if len(content) - place >= 4 else (0, 0)
        if not 4 <= length <= len(content) - place:
            raise DecodeError(DOING, "length of an attribute does not fit its message", length)
        found.append((kind & _TYPE_MASK, content[place + 4 : place + length]))
        place += (length + 3) & ~3
    return found


@functools.lru_cache(maxsize=4096)  # what is about to change is looked for before and after it
def _element_question(table: str, name: str, key: str) -> bytes:
    element = nested(1, nested(1, attribute(1, encode_key(key))))  # NFTA_LIST_ELEM, NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE
    named = attribute(1, _name(table)) + attribute(2, _name(name))
    return message(_SUBSYSTEM | _ELEMENTS, _ACK, _FAMILY.pack(_INET, 0, 0) + named + nested(_ELEMENT_LIST, element))


def _name(text: str) -> bytes:
    return text.encode() + b"\0"


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode()


def _skeleton_questions(table: str) -> list[bytes]:
    name = (_OF_TABLE, _name(table))
    return [
        generation_question(),
        _question(_TABLE, _ACK, name),
        _question(_CHAIN, _DUMP),
        *(_question(kind, _DUMP, name) for kind in (_SET, _RULE, _OBJECT, _FLOWTABLE)),
    ]


def _question(kind: int, flags: int, *named: tuple[int, bytes]) -> bytes:
    content = _FAMILY.pack(_INET, 0, 0) + b"".join(attribute(number, value) for number, value in named)
    return message(_SUBSYSTEM | kind, flags, content)


def refused(code: int) -> NatctlError:
    """Return the error that the number of one is: nfnetlink says EINVAL where nf_tables is not there."""
    if code in (errno.EINVAL, errno.EPROTONOSUPPORT):
        return UnsupportedFeature("nf_tables", "a kernel with CONFIG_NF_TABLES", os.strerror(code).lower())
    return refusal(DOING, code)


def _asked(ask: AskKernel, questions: Sequence[bytes], *, all_there: bool = True) -> list[list[Message]] | None:
    """Return the answers to each question; None where something is not there that has to be."""
    answers: list[list[Message]] = [[]]
    for one in _messages(ask(questions)):
        if one.kind not in (_ERROR, _DONE):
            answers[-1].append(one)
            continue
        code = -struct.unpack_from("=i", one.whole, _HEADER.size)[0] if len(one.whole) > _HEADER.size + 3 else 0
        if code == errno.ENOENT and all_there:
            return None
        if code not in (0, errno.ENOENT):
            raise refused(code)
        answers.append([])
    if len(answers) != len(questions) + 1 or answers[-1]:
        raise DecodeError(DOING, "not as many answers as questions", len(answers) - 1)
    return answers


def is_end(whole: bytes) -> bool:
    """Tell whether a message ends the answers to a question."""
    return _HEADER.unpack_from(whole)[1] in (_ERROR, _DONE)


def is_dump(question: bytes) -> bool:
    """Tell whether a question asks for a dump: the kernel makes one at a time."""
    return bool(_HEADER.unpack_from(question)[2] & _DUMP)


def _messages(answer: bytes) -> list[Message]:
    found: list[Message] = []
    place = 0
    while place < len(answer):
        length, kind, flags, _, _ = _HEADER.unpack_from(answer, place) if len(answer) - place >= 16 else (0,) * 5
        if not _HEADER.size <= length <= len(answer) - place:
            raise DecodeError(DOING, "length of a message does not fit its datagram", length)
        whole = answer[place : place + length]
        found.append(Message(kind, flags, whole[_HEADER.size + _FAMILY.size :], whole))
        place += (length + 3) & ~3
    return found


def _changed(first: list[list[Message]], second: list[list[Message]]) -> bool:
    """Tell whether another ruleset has come in between, or a dump was not of one."""
    interrupted = any(one.flags & _DUMP_CHANGED for answers in (*first, *second) for one in answers)
    return interrupted or first[0][0].content != second[-2][0].content


def _skeleton(table: str, first: list[list[Message]], held: dict[bytes, list[Message]]) -> object:
    _, tables, chains, sets, rules, objects, flowtables, _ = first
    name = (_OF_TABLE, _name(table))
    described = [_lasting(_SET, one) for one in sets]
    anonymous = {
        dict(one)[_SET_NAME]: (_without(one, _SET_NAME), _contents(held[dict(one)[_SET_NAME]]))
        for one in described
        if _is_anonymous(dict(one))
    }
    return (
        [_lasting(_TABLE, one) for one in tables],
        sorted(found for one in chains if name in (found := _lasting(_CHAIN, one))),
        sorted(one for one in described if not _is_anonymous(dict(one))),
        sorted(_by_chain([_rule(one, anonymous) for one in rules])),
        sorted(_lasting(_OBJECT, one) for one in objects),
        sorted(one.content for one in flowtables),
    )


def _rule(rule: Message, anonymous: Mapping[bytes, object]) -> Attributes:
    """Return a rule with what its anonymous sets hold in place of their names, and without its counts."""
    return [
        (kind, repr([_expression(one, anonymous) for _, one in attributes(value)]).encode())
        if kind == _RULE_EXPRESSIONS
        else (kind, value)
        for kind, value in _lasting(_RULE, rule)
    ]


def _expression(content: bytes, anonymous: Mapping[bytes, object]) -> object:
    found = dict(attributes(content))
    name, written = found.get(_EXPRESSION_NAME), found.get(_EXPRESSION_DATA, b"")
    if name == b"counter\0":
        return name
    if name == b"lookup\0":
        inner = attributes(written)
        return name, [(kind, anonymous.get(value, value) if kind == _LOOKUP_SET else value) for kind, value in inner]
    return name, written


def _by_chain(rules: list[Attributes]) -> list[tuple[bytes, list[Attributes]]]:
    chains: dict[bytes, list[Attributes]] = {}
    for rule in rules:
        chains.setdefault(dict(rule)[2], []).append(rule)  # NFTA_RULE_CHAIN
    return list(chains.items())


def _contents(messages: list[Message]) -> list[bytes]:
    """Return the elements of an anonymous set, in an order of their own: hash sets list them in any."""
    lists = (value for one in messages for kind, value in attributes(one.content) if kind == _ELEMENT_LIST)
    return sorted(element for one in lists for _, element in attributes(one))


def _lasting(kind: int, message: Message) -> Attributes:
    return [one for one in attributes(message.content) if one[0] not in _PASSING[kind]]


def _without(found: Attributes, kind: int) -> Attributes:
    return [one for one in found if one[0] != kind]


def _is_anonymous(described: dict[int, bytes]) -> bool:
    return bool(int.from_bytes(described.get(_SET_FLAGS, b"")) & _SET_ANONYMOUS)


def _elements(sets: list[dict[int, bytes]], held: dict[bytes, list[Message]]) -> dict[str, Elements] | None:
    found: dict[str, Elements] = {}
    for described in sets:
        if _is_anonymous(described):
            continue
        name = described[_SET_NAME]
        layout = layout_of(described)
        elements = decode_elements(b"".join(_padded(one.whole) for one in held[name]), layout) if layout else None
        if elements is None:
            return None
        found[_text(name)] = elements
    return found


def _padded(message: bytes) -> bytes:
    return message + bytes(-len(message) % 4)
