"""A fleet: five hosts that share addresses by pools in etcd, an upstream that watches them, and ways to fail."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from nat_rewriter.errors import EXIT_DONE, NatctlError, UnsupportedFeature
from nat_rewriter.model.slices import PortRange
from netns_lab import fleet_settings as settings
from netns_lab import fleet_topology as topology
from netns_lab import namespaces, scratch, state
from netns_lab.etcd_cluster import Cluster, Member, Place
from netns_lab.fleet_judge import Breach, Judge, Port, Use
from netns_lab.fleet_transfer import Transfer, clients_of
from netns_lab.fleet_upstream import FleetUpstream
from netns_lab.host import Host
from netns_lab.lab import Outcome, checked_name, run_natctl, take_down
from netns_lab.packet_ring import PacketRing
from netns_lab.running_agent import RunningAgent, wait_until
from netns_lab.store_watch import StoreWatch
from netns_lab.traffic import Traffic

_ENDPOINTS = [(topology.node_address(node), 2379) for node in topology.NODES]
_HOST_OF_MAC = {topology.host_mac(host): f"host{host}" for host in topology.HOSTS}
RECOVERY_S = 180.0
# etcd's revocations by one that was the leader: 16 at a time, of which each waits for up to 7 s.
_REVOKED_WITHIN_S = 15.0


class Fleet:
    """Agents on five hosts, traffic through each, and a judge of all that leaves.

    ::

        with Fleet() as fleet:
            fleet.agents[1].freeze()
            …
            assert not fleet.watch_for(10)
    """

    def __init__(self, *, slices: int = 9, name: str | None = None) -> None:
        """Describe a fleet with so many slices in each of its pools, one for each IP version; entering it makes it.

        With nine, and two wanted by each host, every host can have one, and there is always one that waits for more.
        """
        self.name = checked_name(name or namespaces.unique_name())
        self.slices = slices
        self._resources = ExitStack()
        self._hosts = {
            each: Host(namespaces.namespace_name(self.name, each), self._resources) for each in topology.NAMES
        }
        self.upstream, self.client, self.server = (self._hosts[each] for each in ("upstream", "client", "server"))
        self.hosts = {number: self._hosts[f"host{number}"] for number in topology.HOSTS}
        self.agents: dict[int, RunningAgent] = {}
        self.configs: dict[int, Path] = {}
        self.transfers: list[Transfer] = []
        self._sent, self._silent_since = Counter[str](), 0.0
        self._waiting, self._without_addresses = set[int](), set[int]()
        self._frozen: dict[int, float] = {}  # etcd nodes, and since when

    def __enter__(self) -> Fleet:
        if missing := [tool for tool in ("etcd", "etcdctl") if not shutil.which(tool)]:
            raise UnsupportedFeature("fleet lab", "etcd-server and etcd-client (Debian's packages)", f"no {missing[0]}")
        try:
            self._make()
        except BaseException:
            self._resources.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for agent in self.agents.values():  # what they would give back now nobody needs
            agent.end()
        self._resources.close()

    def _make(self) -> None:
        state.write(state.LabState(self.name, [], len(topology.HOSTS), state.Process.current()))
        self._resources.callback(take_down, self.name)
        for host in self._hosts.values():
            namespaces.create(host.name)
        topology.build({each: host.name for each, host in self._hosts.items()})
        self._router = FleetUpstream(self.upstream)
        directory = self._resources.enter_context(scratch.scratch_directory(self.name, "fleet"))
        self.nodes = self._resources.enter_context(self._cluster(directory)).members
        self.server.tcp_server(settings.SERVER_PORTS["tcp"])
        self.server.udp_server(settings.SERVER_PORTS["udp"])
        for number, host in self.hosts.items():
            path = self.configs[number] = directory / f"host{number}.toml"
            path.write_text(settings.config_text(number, _ENDPOINTS, self.slices))
            self.agents[number] = RunningAgent(host, f"host{number}", path, ("--give-back",))
        self.natctl(1, "pool", "init", expect=EXIT_DONE)
        self._call_witnesses()
        for number, agent in self.agents.items():
            agent.start()
            self._waiting.add(number)

    def _cluster(self, directory: Path) -> Cluster:
        places = [Place(topology.node_address(node), enter=self._hosts[f"etcd{node}"].enter) for node in topology.NODES]
        return Cluster(directory, places)

    def _call_witnesses(self) -> None:
        self.judge = Judge(settings.SLICE_SIZE, settings.TTL_S, settings.HOLD_DOWN_S)
        with self.upstream.enter():
            networks = [(topology.SHARED_NETWORKS[each], topology.SERVER_NETWORKS[each]) for each in topology.VERSIONS]
            self._rings = [PacketRing(topology.FLEET_LINK, *pair) for pair in networks]
        for ring in self._rings:
            self._resources.callback(ring.close)
        watch = StoreWatch(self.upstream, _ENDPOINTS, self.judge)
        self._resources.callback(watch.close)
        clients = {
            host: {version: topology.client_address(host, version) for version in topology.VERSIONS}
            for host in topology.HOSTS
        }
        servers = {
            (protocol, version): (topology.SERVERS[version], port)
            for protocol, port in settings.SERVER_PORTS.items()
            for version in topology.VERSIONS
        }
        self.traffic = Traffic(self.client, clients, servers)
        self._resources.callback(self.traffic.close)

    # natctl

    def natctl(self, host: int, *arguments: str | Path, expect: int | None = None) -> Outcome:
        """Run natctl on a host as a user would."""
        return run_natctl(self.hosts[host], [*arguments, "--config", self.configs[host]], expect)

    # faults

    def freeze(self, host: int) -> None:
        """Let the agent of a host stand still."""
        self._silence(host, self.agents[host].freeze)

    def wake(self, host: int) -> None:
        """Let the agent of a host go on."""
        self._restore(host, self.agents[host].wake)

    def kill(self, host: int) -> None:
        """End the agent of a host at once; what it has put into the kernel stays."""
        self._silence(host, self.agents[host].kill)

    def revive(self, host: int) -> None:
        """Start the agent of a host again; once it is ready, packets from outside are brought to the host."""
        self._restore(host, self.agents[host].start)
        self._waiting.add(host)

    def wipe(self, host: int) -> None:
        """End the agent of a host, and empty the kernel, as when the host starts anew; the upstream notices.

        It gets the shared addresses once its agent is ready: before that it would answer what is not for it.
        """
        self._withdraw(host)
        self.kill(host)
        self.hosts[host].nft("flush ruleset")
        self.hosts[host].run(["conntrack", "-F"])
        if host not in self._without_addresses:
            self.hosts[host].run(["ip", "-batch", "-"], input=_batch("del"))
            self._without_addresses.add(host)

    def dismiss(self, host: int) -> None:
        """Ask the agent of a host to give everything back, and to end; nothing is brought to the host any more."""
        self._withdraw(host)
        self.agents[host].terminate()

    def employ(self, host: int) -> None:
        """Start the agent of a host that was dismissed; one that has not ended by now is killed first."""
        self.agents[host].end()
        self.agents[host].start()
        self._waiting.add(host)

    def cut_off(self, host: int) -> None:
        """Let no packet pass between a host and the store."""
        self._silence(host, lambda: self._router.cut(topology.host_address(host), _node_addresses()))

    def join(self, host: int) -> None:
        """Let a host reach the store again."""
        self._restore(host, lambda: self._router.mend(topology.host_address(host), _node_addresses()))

    def freeze_node(self, node: int) -> None:
        """Let an etcd node stand still."""
        self._frozen[node] = time.time()
        self.node(node).freeze()

    def freeze_leader(self, otherwise: int) -> None:
        """Let the leader of the etcd nodes stand still; another node where there is none."""
        self.freeze_node(next((node for node in topology.NODES if self.node(node).leads()), otherwise))

    def wake_nodes(self) -> None:
        """Let all of them go on: one that was the leader may end leases that its successor has prolonged."""
        for node, since in self._frozen.items():
            self.node(node).wake()
            self.judge.doubted(since, time.time() + _REVOKED_WITHIN_S)
        self._frozen.clear()

    def isolate(self, node: int) -> None:
        """Let an etcd node reach none of the others; hosts reach it."""
        self._router.cut(topology.node_address(node), _node_addresses(but=node))

    def reconnect(self, node: int) -> None:
        """Let an etcd node reach the others again."""
        self._router.mend(topology.node_address(node), _node_addresses(but=node))

    def lose_majority(self, nodes: Sequence[int]) -> None:
        """Kill most of the etcd nodes: nobody can ask the store for anything."""
        for node in nodes:
            self.node(node).kill()
        for host in topology.HOSTS:
            self._silenced(host)

    def regain_majority(self, nodes: Sequence[int]) -> None:
        """Start those nodes again."""
        for host in topology.HOSTS:
            self._restored(host)
        for node in nodes:
            self.node(node).start()

    def node(self, number: int) -> Member:
        """Return an etcd node."""
        return self.nodes[number - 1]

    def silence_ends_in_s(self) -> float:
        """Return how long hosts that fell silent just now may go on using what they hold."""
        return self._silent_since + settings.TTL_S - time.time()

    def _withdraw(self, host: int) -> None:
        self._waiting.discard(host)
        self._router.withdraw(host)

    def _bring_to_the_ready(self) -> None:
        if ready := {host for host in self._waiting if self.agents[host].ready()}:
            for host in ready & self._without_addresses:
                self.hosts[host].run(["ip", "-batch", "-"], input=_batch("add"))
            self._without_addresses -= ready
            self._waiting -= ready
            self._router.bring_to(ready)

    def _silence(self, host: int, act: Callable[[], None]) -> None:
        act()
        self._silenced(host)

    def _silenced(self, host: int) -> None:
        self._silent_since = time.time()
        self.judge.silenced(self._silent_since, f"host{host}")

    def _restore(self, host: int, act: Callable[[], None]) -> None:
        self._restored(host)
        act()

    def _restored(self, host: int) -> None:
        self.judge.restored(time.time(), f"host{host}")

    # slices that change hands

    def hand_over(self, giver: int, version: int) -> Transfer:
        """Begin to move a slice of a host, with its flows, to the one that has the fewest."""
        others = [host for host in topology.HOSTS if host != giver]
        taker = min(others, key=lambda host: len(self.held_by(host, version)))
        slices = [(first.address, settings.slice_ports(first.number)) for first in self.held_by(giver, version)]
        address, ports = max(slices, key=lambda each: self._staying_in(giver, *each), default=("", PortRange(1, 1)))
        transfer = Transfer(giver, taker, address, ports)
        self.transfers.append(transfer)
        if slices:
            owned = f"[{address}]:{ports}" if version == 6 else f"{address}:{ports}"
            words = [settings.POOLS[version], owned, "--host", f"host{giver}", "--to", f"host{taker}"]
            command = [sys.executable, "-m", "nat_rewriter", "pool", "transfer", *words]
            transfer.begin(self.upstream.popen([*command, "--config", self.configs[giver]]))
        else:
            transfer.outcome = f"host{giver} holds nothing"
        return transfer

    def finish_transfer(self, patience_s: float) -> None:
        """Wait until the slice that was handed over last is with its taker, and its flows are answered there."""
        transfer = self.transfers[-1]

        def finished() -> bool:
            self.breaches()
            return bool(transfer.outcome) and transfer.unanswered() == 0

        wait_until(finished, patience_s)
        transfer.end()

    def _staying_in(self, host: int, address: str, ports: PortRange) -> int:
        return len(self.traffic.staying(clients_of(self.hosts[host], address, ports)))

    def held_by(self, host: int, version: int | None = None) -> list[Port]:
        """Return the slices that a host holds, of one IP version or of both, by etcd's word."""
        held = self.judge.holders().get(f"host{host}", [])
        return [first for first in held if version in (None, 6 if ":" in first.address else 4)]

    # observing

    def breaches(self) -> list[Breach]:
        """Let the judge hear what was captured since the last call; return what was not allowed of what is old enough.

        Raises NatctlError where packets were missed, or came from nobody.
        """
        self._bring_to_the_ready()
        for transfer in self.transfers:
            transfer.follow(self.hosts[transfer.taker], self.traffic)
        arrivals = [arrival for ring in self._rings for arrival in ring.read()]
        if lost := sum(ring.lost for ring in self._rings):
            raise NatctlError("capture packets", f"{lost} found no room in the ring")
        if strangers := {each.mac for each in arrivals} - _HOST_OF_MAC.keys():
            raise NatctlError("tell hosts apart", "packets from a hardware address of no host", sorted(strangers))
        self._sent.update(_HOST_OF_MAC[each.mac] for each in arrivals)
        self.judge.used(
            Use(each.time, _HOST_OF_MAC[each.mac], Port(each.address, each.port), each.kind)
            for each in sorted(arrivals)
        )
        return self.judge.judge()

    def sent(self, hosts: Iterable[int]) -> int:
        """Return how many packets hosts have sent from shared addresses, as far as the capture has been read."""
        return sum(self._sent[f"host{host}"] for host in hosts)

    def watch_for(self, seconds: float) -> list[Breach]:
        """Go on for a while; return what was not allowed."""
        found, end = self.breaches(), time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(0.2, max(0.0, end - time.monotonic())))
            found += self.breaches()
        return found

    def hear_out(self) -> list[Breach]:
        """Go on until all that was sent up to now is judged; return what was not allowed.

        Raises NatctlError where etcd says nothing any more.
        """
        now, found = time.time(), self.breaches()

        def judged() -> bool:
            found.extend(self.breaches())
            return self.judge.has_judged(now)

        if not wait_until(judged, RECOVERY_S):
            raise NatctlError("judge", f"etcd has told nothing of the last {time.time() - now:.0f} s")
        return found

    def working(self, hosts: Iterable[int] = topology.HOSTS, since: float | None = None) -> list[int]:
        """Return which hosts hold a slice by etcd's word, and have carried new flows of both kinds since a time."""
        began = time.time() - 3 if since is None else since
        return [host for host in hosts if self.held_by(host) and self.traffic.works(host, began)]

    def wait_for_work(self, hosts: Sequence[int] = topology.HOSTS, patience_s: float = RECOVERY_S) -> list[int]:
        """Wait until these hosts work, by flows opened from now on; return those that do not."""
        since = time.time()

        def done() -> bool:
            self.breaches()
            return len(self.working(hosts, since)) == len(hosts)

        wait_until(done, patience_s)
        working = self.working(hosts, since)
        return [host for host in hosts if host not in working]

    def account(self) -> str:
        """Return in a line what was seen so far."""
        judge = self.judge
        packets = f"{sum(judge.packets.values())} packets judged"
        if judge.unaware:
            packets += f", {judge.unaware} of them after etcd had ended a lease too soon"
            packets += f" ({judge.short_rests} rests short by that)"
        went_on = f"{judge.changes} times a slice went on to another host, {judge.handed_over} of them handed over"
        return f"{packets}; {went_on}; {len(judge.breaches)} breaches"


def _node_addresses(but: int | None = None) -> list[str]:
    return [topology.node_address(node) for node in topology.NODES if node != but]


def _batch(verb: str) -> str:
    """Return the commands of ip(8) that give a host the shared addresses, or take them away."""
    addresses = [each for version in topology.VERSIONS for each in topology.SHARED[version]]
    return "".join(f"address {verb} {address} dev lo\n" for address in addresses)
