"""A fleet: five hosts that share two addresses by a pool in etcd, an upstream that watches them, and ways to fail."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from nat_rewriter.errors import EXIT_DONE, NatctlError, UnsupportedFeature
from netns_lab import fleet_settings as settings
from netns_lab import fleet_topology as topology
from netns_lab import namespaces, scratch, state
from netns_lab.etcd_cluster import Cluster, Member, Place
from netns_lab.fleet_judge import Breach, Judge, Port, Use
from netns_lab.host import Host
from netns_lab.lab import Outcome, checked_name, run_natctl, take_down
from netns_lab.packet_ring import PacketRing
from netns_lab.running_agent import RunningAgent, wait_until
from netns_lab.store_watch import Holding, StoreWatch
from netns_lab.traffic import Traffic

_ENDPOINTS = [(topology.node_address(node), 2379) for node in topology.NODES]
_HOST_OF_MAC = {topology.host_mac(host): f"host{host}" for host in topology.HOSTS}
SERVERS = "203.0.113.0/24"
RECOVERY_S = 180.0


class Fleet:
    """Agents on five hosts, traffic through each, and a judge of all that leaves.

    ::

        with Fleet() as fleet:
            fleet.agents[1].freeze()
            …
            assert not fleet.watch_for(10)
    """

    def __init__(self, *, slices: int = 9, name: str | None = None) -> None:
        """Describe a fleet with so many slices in its pool; entering it makes it.

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
        self._sent, self._silent_since = Counter[str](), 0.0
        self._brought_to, self._waiting, self._without_addresses = set[int](), set[int](), set[int]()

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
        self.upstream.nft(settings.upstream_ruleset())
        directory = self._resources.enter_context(scratch.scratch_directory(self.name, "fleet"))
        self.nodes = self._resources.enter_context(self._cluster(directory)).members
        self.server.tcp_server(settings.SERVER_PORTS["tcp"][1])
        self.server.udp_server(settings.SERVER_PORTS["udp"][1])
        for number, host in self.hosts.items():
            path = self.configs[number] = directory / f"host{number}.toml"
            path.write_text(settings.config_text(number, _ENDPOINTS, self.slices))
            self.agents[number] = RunningAgent(host, f"host{number}", path, ("--give-back",))
        self.natctl(1, "pool", "init", expect=EXIT_DONE)
        self._call_witnesses()
        for number, agent in self.agents.items():
            agent.start()
            self._waiting.add(number)
        self.upstream.nft(settings.spraying(self._brought_to))

    def _cluster(self, directory: Path) -> Cluster:
        places = [Place(topology.node_address(node), enter=self._hosts[f"etcd{node}"].enter) for node in topology.NODES]
        return Cluster(directory, places)

    def _call_witnesses(self) -> None:
        self.judge = Judge(settings.SLICE_SIZE, settings.TTL_S, settings.HOLD_DOWN_S)
        with self.upstream.enter():
            self._ring = PacketRing(topology.FLEET_LINK, topology.SHARED_NETWORK, SERVERS)
        self._resources.callback(self._ring.close)
        endpoints = [f"{address}:{port}" for address, port in _ENDPOINTS]
        watch = StoreWatch(self.upstream, endpoints, settings.POOL, self._hear)
        self._resources.callback(watch.close)
        clients = {number: topology.client_address(number) for number in topology.HOSTS}
        servers = settings.SERVER_PORTS
        self.traffic = Traffic(self.client, clients, servers["udp"], servers["tcp"])
        self._resources.callback(self.traffic.close)

    def _hear(self, when: float, holding: Holding) -> None:
        self.judge.holds(when, holding.revision, holding.host, [Port(*each) for each in holding.slices])

    # natctl

    def natctl(self, host: int, *arguments: str | Path, expect: int | None = None) -> Outcome:
        """Run natctl on a host as a user would."""
        return run_natctl(self.hosts[host], [*arguments, "--config", self.configs[host]], expect)

    # faults

    def freeze(self, host: int) -> None:
        """Let the agent of a host stand still."""
        self.agents[host].freeze()
        self._silenced(host)

    def wake(self, host: int) -> None:
        """Let the agent of a host go on."""
        self._restored(host)
        self.agents[host].wake()

    def kill(self, host: int) -> None:
        """End the agent of a host at once; what it has put into the kernel stays."""
        self.agents[host].kill()
        self._silenced(host)

    def revive(self, host: int) -> None:
        """Start the agent of a host again; once it is ready, packets from outside are brought to the host."""
        self._restored(host)
        self.agents[host].start()
        self._waiting.add(host)

    def wipe(self, host: int) -> None:
        """End the agent of a host, and empty the kernel, as when the host starts anew; the upstream notices.

        It gets the shared addresses once its agent is ready: before that it would answer what is not for it.
        """
        self._withdraw(host)
        self.kill(host)
        self.hosts[host].run(["conntrack", "-F"])
        self.hosts[host].nft("flush ruleset")
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
        self._cut("add", topology.host_address(host), map(topology.node_address, topology.NODES))
        self._silenced(host)

    def join(self, host: int) -> None:
        """Let a host reach the store again."""
        self._restored(host)
        self._cut("delete", topology.host_address(host), map(topology.node_address, topology.NODES))

    def isolate(self, node: int) -> None:
        """Let an etcd node reach none of the others; hosts reach it."""
        self._cut("add", topology.node_address(node), self._other_nodes(node))

    def reconnect(self, node: int) -> None:
        """Let an etcd node reach the others again."""
        self._cut("delete", topology.node_address(node), self._other_nodes(node))

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

    def _other_nodes(self, node: int) -> list[str]:
        return [topology.node_address(other) for other in topology.NODES if other != node]

    def _cut(self, verb: str, one: str, others: Iterable[str]) -> None:
        pairs = ", ".join(f"{one} . {other}, {other} . {one}" for other in others)
        self.upstream.nft(f"{verb} element inet upstream cut {{ {pairs} }}")

    def _withdraw(self, host: int) -> None:
        self._waiting.discard(host)
        self._brought_to.discard(host)
        self.upstream.nft(settings.spraying(self._brought_to))

    def _bring_to_the_ready(self) -> None:
        if ready := {host for host in self._waiting if self.agents[host].ready()}:
            for host in ready & self._without_addresses:
                self.hosts[host].run(["ip", "-batch", "-"], input=_batch("add"))
            self._without_addresses -= ready
            self._waiting -= ready
            self._brought_to |= ready
            self.upstream.nft(settings.spraying(self._brought_to))

    def _silenced(self, host: int) -> None:
        self._silent_since = time.time()
        self.judge.silenced(self._silent_since, f"host{host}")

    def _restored(self, host: int) -> None:
        self.judge.restored(time.time(), f"host{host}")

    # observing

    def breaches(self) -> list[Breach]:
        """Let the judge hear what was captured since the last call; return what was not allowed of what is old enough.

        Raises NatctlError where packets were missed, or came from nobody.
        """
        self._bring_to_the_ready()
        arrivals = list(self._ring.read())
        if self._ring.lost:
            raise NatctlError("capture packets", f"{self._ring.lost} found no room in the ring")
        if strangers := {each.mac for each in arrivals} - _HOST_OF_MAC.keys():
            raise NatctlError("tell hosts apart", "packets from a hardware address of no host", sorted(strangers))
        self._sent.update(_HOST_OF_MAC[each.mac] for each in arrivals)
        self.judge.used(
            Use(each.time, _HOST_OF_MAC[each.mac], Port(each.address, each.port), each.kind) for each in arrivals
        )
        return self.judge.judge(time.time())

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

    def working(self, hosts: Iterable[int] = topology.HOSTS, since: float | None = None) -> list[int]:
        """Return which hosts hold a slice by etcd's word, and have carried new flows of both kinds since a time."""
        held, began = self.judge.holders(), time.time() - 3 if since is None else since
        return [host for host in hosts if held.get(f"host{host}") and self.traffic.works(host, began)]

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
        packets, changes = sum(self.judge.packets.values()), self.judge.changes
        breaches = len(self.judge.breaches)
        return f"{packets} packets judged, {changes} times a slice went on to another host, {breaches} breaches"


def _batch(verb: str) -> str:
    """Return the commands of ip(8) that give a host the shared addresses, or take them away."""
    return "".join(f"address {verb} {address}/32 dev lo\n" for address in topology.SHARED)
