"""Elements of a table, asked and changed over netlink by this process itself: a few of many, without reading the rest.

libnftables fetches a whole set before it changes one element of it. What is here sends the elements alone, in one batch
(nfnetlink_rcv_batch() in net/netfilter/nfnetlink.c) that names the ruleset it was made for, NFNL_BATCH_GENID: where
another one has come since, the kernel refuses it. A process that is killed meanwhile ends when the kernel has finished.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Mapping, Sequence

from nat_rewriter.errors import NftError, PermissionNeeded, RulesetMoved
from nat_rewriter.kernel import netlink, nft_dumps
from nat_rewriter.kernel._core._native import lib
from nat_rewriter.kernel.netlink import attribute, message, nested
from nat_rewriter.kernel.nft_elements import Elements, Layout, encode_data, encode_key, encode_key_end
from nat_rewriter.model.transaction import AddElements, DeleteElements, Transaction

DOING = "load ruleset"
_BEGIN, _END, _GENERATION = 16, 17, 1  # NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFNL_BATCH_GENID
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_NEW, _DELETE = _SUBSYSTEM << 8 | 12, _SUBSYSTEM << 8 | 14  # NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM
_ACK, _CREATE, _EXCLUSIVE = 0x4, 0x400, 0x200
_FAMILY = struct.Struct(">BBH")
_NUMBER = struct.Struct(">I")
_INET = 1
_KEY, _DATA, _KEY_END, _VALUE, _ELEMENT = 1, 2, 10, 1, 1  # NFTA_SET_ELEM_*, NFTA_DATA_VALUE, NFTA_LIST_ELEM
_TABLE, _SET, _ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_*
_A_MESSAGE = 256  # elements: the length of their list has 16 bits
_AT_ONCE = 24  # questions whose answers fit into a receive buffer of the usual size


class LiveElements:
    """The elements of tables of family inet, in the network namespace of the thread that makes the object."""

    def __init__(self) -> None:
        self._asked = netlink.open_socket(lib.NETLINK_NETFILTER, DOING)

    def close(self) -> None:
        """Close the socket to the kernel."""
        self._asked.close()

    def generation(self) -> int:
        """Return how many rulesets this network namespace has had: while it is the same, no table has changed."""
        return nft_dumps.read_generation(self._ask)

    def layouts(self, table: str) -> dict[str, Layout | None]:
        """Return how the elements of each named set are laid out; None where only nft knows."""
        return nft_dumps.read_layouts(self._ask, table)

    def find(
        self, table: str, wanted: Mapping[str, Sequence[str]], layouts: Mapping[str, Layout]
    ) -> Mapping[str, Elements] | None:
        """Return those of the wanted elements, by set and key, that the kernel has; None where only nft knows."""
        return nft_dumps.find_elements(self._ask, table, wanted, layouts)

    def change(self, transaction: Transaction, layouts: Mapping[str, Layout], generation: int) -> None:
        """Make all of a transaction of elements happen on the ruleset of that number.

        Raises RulesetMoved where it is another by now; NftError, PermissionNeeded. Nothing was changed then.
        """
        messages = [part for step in transaction.steps for part in _messages(step, layouts)]
        begin = message(_BEGIN, 0, _FAMILY.pack(0, 0, _SUBSYSTEM) + attribute(_GENERATION, _NUMBER.pack(generation)))
        self._asked.send(b"".join((begin, *messages, message(_END, 0, _FAMILY.pack(0, 0, _SUBSYSTEM)))))
        # What came of it has been said before send(2) returns: one answer a message, or one for all.
        codes = [code for code in self._codes() if code]
        if errno.ERESTART in codes:
            raise RulesetMoved(DOING, errno.ERESTART, "another program has changed a ruleset meanwhile")
        if errno.EPERM in codes:
            raise PermissionNeeded(DOING, "CAP_NET_ADMIN")
        if codes:
            raise NftError(DOING, codes[0], "the kernel refuses a change of elements")

    def _codes(self) -> Iterator[int]:
        self._asked.setblocking(False)
        try:
            while True:
                for one in netlink.split_messages(self._asked.recv(netlink.DUMP_BYTES)):
                    yield -struct.unpack_from("=i", one, netlink.MESSAGE_HEADER)[0]
        except BlockingIOError:
            return
        finally:
            self._asked.settimeout(netlink.ANSWER_TIMEOUT_S)

    def _ask(self, questions: Sequence[bytes]) -> bytes:
        parts: list[bytes] = []
        for first in range(0, len(questions), _AT_ONCE):
            some = questions[first : first + _AT_ONCE]
            try:
                parts += self._answers(some)
            except OSError as error:
                raise nft_dumps.refused(error.errno or errno.ETIMEDOUT) from None
        return b"".join(parts)

    def _answers(self, questions: Sequence[bytes]) -> Iterator[bytes]:
        """Yield what the kernel answers: to all questions at once, or to one dump after the other."""
        for question in questions if any(map(nft_dumps.is_dump, questions)) else [b"".join(questions)]:
            left = sum(1 for _ in netlink.split_messages(question))
            self._asked.send(question)
            while left:
                answer = self._asked.recv(netlink.DUMP_BYTES)
                yield answer
                left -= sum(nft_dumps.is_end(one) for one in netlink.split_messages(answer))


def _messages(step: object, layouts: Mapping[str, Layout]) -> Iterator[bytes]:
    match step:
        case AddElements(table, name, elements):
            kind, flags, items = _NEW, _CREATE | _EXCLUSIVE, list(elements.items())
        case DeleteElements(table, name, keys):
            kind, flags, items = _DELETE, 0, [(key, "") for key in keys]
        case _:
            raise TypeError(f"{step!r} changes more than elements")
    head = _FAMILY.pack(_INET, 0, 0) + attribute(_TABLE, _named(table)) + attribute(_SET, _named(name))
    for first in range(0, len(items), _A_MESSAGE):
        some = [_element(key, data, layouts[name]) for key, data in items[first : first + _A_MESSAGE]]
        yield message(kind, flags | _ACK, head + nested(_ELEMENTS, *some))


def _element(key: str, data: str, layout: Layout) -> bytes:
    parts = [nested(_KEY, attribute(_VALUE, encode_key(key)))]
    if data:
        parts.append(nested(_DATA, encode_data(data, layout)))
    if layout.is_ranged:
        parts.append(nested(_KEY_END, attribute(_VALUE, encode_key_end(key))))
    return nested(_ELEMENT, *parts)


def _named(text: str) -> bytes:
    return text.encode() + b"\0"
