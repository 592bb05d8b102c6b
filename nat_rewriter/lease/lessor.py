"""Gives leases: knows the slices, the ports that are out, and what the kernel has to be asked for each strategy."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Sequence
from types import TracebackType

from nat_rewriter.errors import ConnectFailed, LeaseLost, PermissionNeeded, SliceExhausted, UsageError
from nat_rewriter.kernel import placeholders
from nat_rewriter.kernel.connections import Connection, begin_at, begin_in_range
from nat_rewriter.kernel.lease_ends import LeaseEnds
from nat_rewriter.kernel.lease_entries import Entry, LeaseEntries, Way
from nat_rewriter.lease.destinations import Destination, literal_address, resolve
from nat_rewriter.lease.holding import begin, passed_over, reserve, stand_for
from nat_rewriter.lease.keeper import Keeper
from nat_rewriter.lease.lease import CONNECT_WITHIN_S, TAKEN, Lease, State, connect_failed
from nat_rewriter.lease.limits import Limits
from nat_rewriter.lease.ports import PortPools
from nat_rewriter.lease.strategies import AUTO, Strategy, find_strategy
from nat_rewriter.model.policy import Coexist, Policy
from nat_rewriter.model.slices import PortRange, Slice
from nat_rewriter.model.tuples import endpoint_text

TERM_S = 15
SHORTEST_TERM_S = 2
_REFUSED_TRIES = 8
_ACQUIRE = "acquire lease"
_PLANS = 4096
Plan = tuple[Slice, Way, Strategy]  # what a lease would be of
Ended = tuple[Lease, State]  # a lease that is over, and what it was before


class Lessor:
    """Gives leases of the slices of a policy, in the network namespace of the thread that calls. Thread-safe.

    ``term_s``: how long at most a conntrack entry outlives a process that was killed. ``verify``: whether the port on
    the wire is asked of conntrack after connecting, as far as permitted, where the strategy does not keep NAT off;
    default: for slices that rules of the policy rewrite packets into. A context manager: closing it releases every
    lease.

    ::

        with Lessor(policy) as lessor, lessor.acquire("ams-1", ("192.0.2.1", 443)) as lease:
            sock = lease.connect()
    """

    def __init__(self, policy: Policy, *, term_s: int = TERM_S, verify: bool | None = None) -> None:
        if term_s < SHORTEST_TERM_S:
            raise UsageError("make lessor", f"expected a term of at least {SHORTEST_TERM_S} seconds", term_s)
        self.policy, self._term_s = policy, term_s
        self._slices = {each.name: each for each in policy.slices}
        self._lock = threading.Lock()
        split = policy.controller.coexist is Coexist.SPLIT
        self._movable = _list_movable(policy, verify)
        self._ports = {each.name: each.socket_ranges if split else each.ranges for each in policy.slices}
        self._sizes = {name: sum(map(len, ranges)) for name, ranges in self._ports.items()}
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._pools = PortPools()
        self._out: set[Lease] = set()
        self._entries: LeaseEntries | None = None
        self._keeper: Keeper | None = None
        self._limits = Limits()

    def __enter__(self) -> Lessor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def mended(self) -> int:
        """How many entries were made again, because they had gone while their lease was held."""
        return self._keeper.mended if self._keeper else 0

    def list_leases(self) -> list[Lease]:
        """Return the leases that are out and have a port."""
        with self._lock:
            return list(self._out)

    def close(self) -> None:
        """Release all leases, and let go of the kernel."""
        self.release_many(self.list_leases())
        if self._keeper:
            self._keeper.close()
        if self._entries:
            self._entries.close()
        self._keeper = self._entries = None

    def acquire(
        self, slice_name: str, to: Destination, *, protocol: str = "tcp", strategy: str = AUTO, port: int | None = None
    ) -> Lease:
        """Return a lease of a port of a slice towards a destination, of a given port if one is named.

        Raises UsageError for what the slice does not have, LeaseError for a name without an address, SliceExhausted,
        PermissionNeeded, UnsupportedFeature. Nothing of a failed attempt is left.
        """
        owned, way, chosen = self.plan(slice_name, to, protocol, strategy)
        if port is None:
            return self._acquire(owned, way, chosen, 1)[0]
        if not chosen.holds:
            raise UsageError(
                _ACQUIRE, f"the kernel picks the port under {chosen.name}, expected another strategy", port
            )
        if not any(port in ports for ports in self._ports_of(owned)):
            raise UsageError(_ACQUIRE, f"expected a port of slice {owned.name} that is for sockets", port)
        leases = self._hold(owned, way, chosen, [port])
        if not leases:
            raise LeaseLost(_ACQUIRE, "the tuple is taken", way.at(port))
        return leases[0]

    def acquire_many(
        self, slice_name: str, to: Destination, count: int, *, protocol: str = "tcp", strategy: str = AUTO
    ) -> list[Lease]:
        """Return ``count`` leases towards one destination, all or none; requests to the kernel go out in bulk."""
        if count < 1:
            raise UsageError(_ACQUIRE, "expected a count of at least 1", count)
        return self._acquire(*self.plan(slice_name, to, protocol, strategy), count)

    def connect(
        self, slice_name: str, to: Destination, *, protocol: str = "tcp", strategy: str = AUTO,
        timeout_s: float = CONNECT_WITHIN_S,
    ) -> Lease:  # fmt: skip
        """Return a lease that is connected; a port whose tuple turns out to be taken is passed over."""
        owned, way, chosen = self.plan(slice_name, to, protocol, strategy)
        refused = 0
        for _ in range(self._sizes[owned.name]):
            lease = self._acquire(owned, way, chosen, 1)[0] if chosen.holds else self._begun(owned, way, chosen)
            try:
                lease.connect(timeout_s)
                return lease
            except LeaseLost:
                continue
            except ConnectFailed:
                # Under refuse, a claim of a NAT flow looks like a server that refuses.
                refused += 1
                claimed = self.policy.controller.coexist is Coexist.REFUSE and not chosen.against_nat
                if not claimed or refused == _REFUSED_TRIES:
                    raise
        raise self._exhausted(owned, way)

    def release_many(self, leases: Sequence[Lease]) -> None:
        """Release leases; requests to the kernel go out in bulk."""
        ended = [(lease, before) for lease in leases if (before := lease.close()) is not None]
        if ended:
            self.take_back(ended)

    def plan(self, slice_name: str, to: Destination, protocol: str, strategy: str) -> Plan:
        """Return what a lease would be of: slice, way and strategy. A name is resolved, which may take seconds."""
        known = slice_name, to, protocol, strategy, self._limits.fast_open
        if (plan := self._plans.get(known)) is not None:
            return plan
        owned = self.find_slice(slice_name, protocol)
        chosen = find_strategy(strategy, protocol, self.policy.controller.coexist, fast_open=self._limits.fast_open)
        if not 0 < to[1] < 65536:
            raise UsageError(_ACQUIRE, "expected a destination port from 1 to 65535", to[1])
        plan = owned, Way(protocol, owned.address, resolve(to[0], owned.address.version), to[1]), chosen
        if literal_address(to[0], owned.address.version):  # what a name means may change
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            self._plans[known] = plan
        return plan

    def find_slice(self, name: str, protocol: str) -> Slice:
        """Return a slice that has ports of that protocol for sockets. Raises UsageError."""
        owned = self._slices.get(name)
        if owned is None:
            raise UsageError(_ACQUIRE, f"no slice of that name, expected one of {', '.join(self._slices)}", name)
        has = [each.value for each in owned.protocols if each.value != "icmp"]
        if protocol not in has:
            raise UsageError(
                _ACQUIRE, f"expected a protocol of slice {name}: {', '.join(has) or 'it has none'}", protocol
            )
        if not self._ports_of(owned):
            raise UsageError(_ACQUIRE, 'the slice has no socket_ports, which coexist = "split" needs for sockets', name)
        return owned

    # What leases call.

    def begin(self, lease: Lease, holder: socket.socket | None) -> Connection:
        """Let a lease send its first packet. OSError as connect() says it."""
        if lease.strategy.entry and lease.way.protocol == "tcp" and self._keeper:
            self._keeper.let_go(lease.way, [lease.port])  # from now on its packets say how long it lasts
        if lease.strategy.holds:
            return begin(lease.way, lease.port, lease.strategy.holder, holder)
        begun = self._begin_anywhere(lease.slice, lease.way)
        lease.port = begun.port
        with self._lock:
            self._out.add(lease)
        return begun

    def verify(self, lease: Lease) -> None:
        """Raise LeaseLost where the packets of a connection leave with another port than the leased one."""
        if lease.strategy.against_nat or lease.slice.name not in self._movable or lease.way.protocol != "tcp":
            return
        with contextlib.suppress(PermissionNeeded):
            wire = self.wire_port(lease)
            if wire not in (None, lease.port):
                raise LeaseLost("connect from lease", f"a NAT flow has it, packets left from port {wire}", lease.tuple)

    def wire_port(self, lease: Lease) -> int | None:
        """Return the port on the wire as conntrack has it, None where it has no entry of the connection."""
        return self._ask_entries().get_wire_port(lease.way, lease.port)

    def take_back(self, ended: Sequence[Ended]) -> None:
        """Clear away what leases that are over had in the kernel, and put their ports at the end of the line."""
        with self._lock:
            self._out.difference_update([lease for lease, _ in ended])
        for way in dict.fromkeys(lease.way for lease, _ in ended):
            some = [one for one in ended if one[0].way == way]
            if self._keeper:
                self._keeper.let_go(way, [lease.port for lease, _ in some if lease.strategy.entry])
            self._clear(way, [one for one in some if _may_have_entry(*one)])
            for lease, _ in some:
                if lease.pooled:
                    self._pools.give_back(lease.slice.name, way, [lease.port])

    def _clear(self, way: Way, ended: Sequence[Ended]) -> None:
        """Delete entries that stand for nothing any more; when a connection's ends is for conntrack to say."""
        with contextlib.suppress(PermissionNeeded):
            entries = self._ask_entries()
            found = entries.look(way, [lease.port for lease, _ in ended])
            vain = [one[0].port for one, entry in zip(ended, found, strict=True) if entry and _is_vain(*one, entry)]
            entries.delete(way, vain)

    # How ports are found and held.

    def _acquire(self, owned: Slice, way: Way, strategy: Strategy, count: int) -> list[Lease]:
        if not strategy.holds:
            return [Lease(self, owned, way, 0, strategy) for _ in range(count)]
        ranges = self._ports_of(owned)
        tries = self._pools.available(owned.name, way, ranges)
        leases: list[Lease] = []
        try:
            while len(leases) < count:
                ports = self._pools.take(owned.name, way, ranges, min(count - len(leases), tries))
                if not ports:
                    raise self._exhausted(owned, way)
                tries -= len(ports)
                leases += self._hold_pooled(owned, way, strategy, ports)
        except BaseException:
            self.release_many(leases)
            raise
        return leases

    def _hold_pooled(self, owned: Slice, way: Way, strategy: Strategy, ports: Sequence[int]) -> list[Lease]:
        """Hold those of the ports that nobody has; the others go back to the end of the line."""
        leases: list[Lease] = []
        try:
            leases = self._hold(owned, way, strategy, ports, pooled=True)
        finally:
            held = {lease.port for lease in leases}
            self._pools.give_back(owned.name, way, [port for port in ports if port not in held])
        return leases

    def _hold(
        self, owned: Slice, way: Way, strategy: Strategy, ports: Sequence[int], *, pooled: bool = False
    ) -> list[Lease]:
        """Hold those of the ports that nobody has."""
        if not strategy.entry:
            held = stand_for(way, strategy, ports)
        else:
            entries, keeper = self._ask_entries(), self._ask_keeper()
            reserved = reserve(entries, way, ports, self._term_s)
            held = {}
            try:
                held = stand_for(way, strategy, reserved)
            finally:
                if len(held) < len(reserved):
                    entries.delete(way, [port for port in reserved if port not in held])
            keeper.keep(way, list(held))
        leases = [Lease(self, owned, way, port, strategy, holder, pooled=pooled) for port, holder in held.items()]
        with self._lock:
            self._out.update(leases)
        return leases

    def _begun(self, owned: Slice, way: Way, strategy: Strategy) -> Lease:
        """Return a lease that connects from a port which nobody held before. Raises ConnectFailed."""
        try:
            begun = self._begin_anywhere(owned, way)
        except OSError as error:
            raise connect_failed(error.errno or errno.EIO, way.at(0)) from None
        lease = Lease(self, owned, way, begun.port, strategy, begun=begun)
        with self._lock:
            self._out.add(lease)
        return lease

    def _begin_anywhere(self, owned: Slice, way: Way) -> Connection:
        """Connect from a port that the kernel picks in the slice, or by hand where it would not keep to it.

        By hand also where it finds none: it passes over every port that some socket has bound by number, whatever the
        destination (__inet_hash_connect() looks at fastreuse).
        """
        for ports in self._limits.usable(owned.name, self._ports[owned.name]):
            try:
                begun = begin_in_range(way, ports)
            except OSError as error:
                if error.errno not in TAKEN:
                    raise
            else:
                if ports.first <= begun.port <= ports.last:
                    return begun
                placeholders.abort_on_close(begun.sock)  # ip_local_port_range has changed just now
                begun.sock.close()
        return self._begin_by_hand(owned, way)

    def _begin_by_hand(self, owned: Slice, way: Way) -> Connection:
        name, ranges = f"{owned.name}, by hand", self._ports_of(owned)
        for _ in range(self._sizes[owned.name]):
            ports = self._pools.take(name, way, ranges, 1)
            self._pools.give_back(name, way, ports)
            for port in ports:
                with passed_over():
                    return begin_at(way, port, shared=way.protocol == "tcp")
        raise self._exhausted(owned, way)

    def _ports_of(self, owned: Slice) -> tuple[PortRange, ...]:
        return self._ports[owned.name]

    def _ask_entries(self) -> LeaseEntries:
        with self._lock:
            if self._entries is None:
                self._entries = LeaseEntries()
            return self._entries

    def _ask_keeper(self) -> Keeper:
        entries = self._ask_entries()
        with self._lock:
            if self._keeper is None:
                ends = LeaseEnds({each.address for each in self.policy.slices}, entries.port_id)
                self._keeper = Keeper(entries, ends, self._term_s, self._lose)
            return self._keeper

    def _lose(self, way: Way, port: int) -> None:
        with self._lock:
            lost = [lease for lease in self._out if lease.port == port and lease.way == way]
        for lease in lost:
            lease.lose()

    def _exhausted(self, owned: Slice, way: Way) -> SliceExhausted:
        towards = endpoint_text(way.dst, way.dport)
        return SliceExhausted(_ACQUIRE, f"no {way.protocol} port of slice {owned.name} is free towards", towards)


def _list_movable(policy: Policy, verify: bool | None) -> frozenset[str]:
    """Return the names of the slices whose sockets NAT may move to another port, as far as one wants to know."""
    if verify is not None:
        return frozenset(each.name for each in policy.slices) if verify else frozenset()
    if policy.controller.coexist is Coexist.SPLIT:  # NAT never has a port that is for sockets
        return frozenset()
    rewritten = {each.name for rule in policy.snat for each in rule.slices}
    return frozenset(rewritten | {rule.slice.name for rule in policy.dnat})


def _may_have_entry(lease: Lease, before: State) -> bool:
    """Tell whether a lease that is over may have left an entry that nobody needs."""
    if lease.lost or not lease.port or (before is State.CONNECTED and lease.way.protocol == "tcp"):
        return False
    return before is not State.HELD or lease.strategy.entry


def _is_vain(lease: Lease, before: State, entry: Entry) -> bool:
    """Tell whether an entry stands for nothing: for no connection, of this lease or of who took it over."""
    shared = before is State.HELD and not lease.strategy.against_sockets
    return not entry.standing and (entry.untouched or not shared)
