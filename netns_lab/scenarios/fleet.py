"""Hosts come, go and fail, and so does the store: no slice is ever used by two of them, and all is well again after."""

from __future__ import annotations

import time

from nat_rewriter.errors import EXIT_FAILED
from nat_rewriter.model.slices import PortRange
from netns_lab.fleet_settings import MOST_HELD, POOLS, TTL_S
from netns_lab.fleet_stage import LEASE_ENDS_S, FleetStage
from netns_lab.fleet_topology import HOSTS, NODES, VERSIONS
from netns_lab.scenario import fleet_scenario


@fleet_scenario("fleet-join", "a host that leaves gives its slices to others; one that joins gets some, and works")
def fleet_join(stage: FleetStage) -> None:
    """The agent gives back what it has when it is asked to end."""
    fleet = stage.fleet
    with stage.step("host5 leaves"):
        fleet.dismiss(5)
        stage.expect_soon("its agent ends", fleet.agents[5].ended)
        stage.expect_soon("it holds nothing", lambda: stage.held_by(5) == 0)
        stage.expect_silence(5)
        stage.expect_work(1, 2, 3, 4)
    with stage.step("host5 joins"):
        fleet.employ(5)
        stage.expect_work()


@fleet_scenario(
    "fleet-dies", "an agent is killed: its slices are used to the end of their term, and by others after it"
)
def fleet_dies(stage: FleetStage) -> None:
    """SIGKILL: nobody is left to say anything, and the kernel stops by itself."""
    fleet = stage.fleet
    with stage.step("The agent of host2 is killed"):
        fleet.kill(2)
        stage.expect_traffic(2)
    with stage.step("Its term ends"):
        stage.expect_end_of_term(2)
        stage.expect_soon("others hold all slices but one", stage.most_are_held, LEASE_ENDS_S)
        stage.expect_work(1, 3, 4, 5)
    with stage.step("It is started again"):
        fleet.revive(2)
        stage.expect_work()


@fleet_scenario("fleet-cut-off", "a host that cannot reach the store goes on to the end of its term, and no longer")
def fleet_cut_off(stage: FleetStage) -> None:
    """The host has its way to the servers, and none to etcd."""
    fleet = stage.fleet
    with stage.step("Between host3 and the store no packet passes"):
        told = len(fleet.agents[3].deeds())
        fleet.cut_off(3)
        stage.expect_traffic(3)
        fleet.agents[3].wait_for("store-silent", told)
    with stage.step("Its term ends"):
        stage.expect_end_of_term(3)
    with stage.step("It can reach the store again"):
        fleet.join(3)
        stage.expect_work()
        stage.expect("the agent tells it", fleet.agents[3].wait_for("store-back", told)["event"], "store-back")


@fleet_scenario("fleet-frozen", "an agent that stood still for longer than its term wakes, and uses nothing of before")
def fleet_frozen(stage: FleetStage) -> None:
    """SIGSTOP, with all processes of the agent."""
    fleet = stage.fleet
    with stage.step("The agent of host4 stands still"):
        told = len(fleet.agents[4].deeds())
        fleet.freeze(4)
        stage.expect_end_of_term(4)
        stage.expect_soon("others hold all slices but one", stage.most_are_held, LEASE_ENDS_S)
    with stage.step("It goes on"):
        fleet.wake(4)
        stage.expect("it finds that its slices are lost", fleet.agents[4].wait_for("lost", told)["event"], "lost")
        stage.expect_work()


@fleet_scenario("fleet-etcd-node-lost", "one etcd node of three is lost, each in turn: no slice is, and no packet")
def fleet_etcd_node_lost(stage: FleetStage) -> None:
    """Agents ask the next endpoint; one of the three nodes is the leader."""
    fleet = stage.fleet
    for node in NODES:
        with stage.step(f"etcd{node} is killed"):
            stage.expect_answers()
            told = {host: len(agent.deeds()) for host, agent in fleet.agents.items()}
            began = time.time()
            fleet.node(node).kill()
            fleet.watch_for(TTL_S + 1)
            deeds = [deed for host, agent in fleet.agents.items() for deed in agent.deeds()[told[host] :]]
            stage.expect("slices lost", sum(deed["event"] == "lost" for deed in deeds), 0)
            stage.expect("flows and datagrams without an answer", len(fleet.traffic.lost(began)), 0)
        with stage.step("It comes back"):
            fleet.node(node).start()
            fleet.node(node).wait()
            stage.expect_work()


@fleet_scenario("fleet-majority-lost", "etcd loses its majority: flows go on to the end of the terms, and no longer")
def fleet_majority_lost(stage: FleetStage) -> None:
    """Two of three nodes: nothing can be asked, and nothing ends in the store."""
    fleet = stage.fleet
    with stage.step("Two of three etcd nodes are killed"):
        fleet.lose_majority([1, 2])
        stage.expect_traffic(1, 2, 3, 4, 5)
        refusal = fleet.natctl(1, "pool", "acquire", POOLS[4], "--host", "another")
        stage.expect("exit code of natctl pool acquire", refusal.exit_code, EXIT_FAILED)
        stage.say(refusal.stderr.strip())
        stage.expect("it says why", "no endpoint of etcd could answer" in refusal.stderr)
    with stage.step("The terms end"):
        fleet.watch_for(max(0.0, fleet.silence_ends_in_s()))
        stage.expect_silence(1, 2, 3, 4, 5)
    with stage.step("They come back"):
        fleet.regain_majority([1, 2])
        stage.expect_work()


@fleet_scenario("fleet-exhausted", "who wants a slice where all are held is told so, and gets the next that is free")
def fleet_exhausted(stage: FleetStage) -> None:
    """Ten slices of IPv4 are wanted, and there are nine."""
    fleet = stage.fleet
    with stage.step("All slices are held"):
        stage.expect_soon("none is free", lambda: stage.free(4) == 0)
        (waiting,) = [host for host in fleet.hosts if stage.held_by(host, 4) == 1]
        agent = fleet.agents[waiting]
        refused = agent.wait_for("refused", len(agent.deeds()))
        stage.say(f"host{waiting} is told: {refused['detail']}")
        stage.expect("it is told how many are free", "0 of 9 slices are free" in refused["detail"])
        stage.expect_work()
    leaving = waiting % len(fleet.hosts) + 1
    with stage.step(f"host{leaving} leaves"):
        fleet.dismiss(leaving)
        stage.expect_soon(f"host{waiting} holds two slices", lambda: stage.held_by(waiting, 4) == MOST_HELD)
    with stage.step(f"host{leaving} joins"):
        fleet.employ(leaving)
        stage.expect_work()


@fleet_scenario("fleet-transfer", "a slice is handed over to another host, and its flows go on there")
def fleet_transfer(stage: FleetStage) -> None:
    """Both agents live, and the clients are sent by the other host once it has the slice."""
    for version in VERSIONS:
        giver = next(host for host in HOSTS if stage.held_by(host, version) == MOST_HELD)
        with stage.step(f"host{giver} hands a slice of IPv{version} over"):
            stage.expect_answers()
            _hand_over(stage, giver, version)
            stage.expect_work()


def _hand_over(stage: FleetStage, giver: int, version: int) -> None:
    transfer = stage.fleet.hand_over(giver, version)
    stage.expect_soon("the command ends", lambda: bool(transfer.outcome))
    stage.say(transfer.outcome)
    stage.expect("flows that stay, and went along", len(transfer.flows), PortRange(1, 10))
    stage.expect_soon("each of them is answered by its new host", lambda: transfer.unanswered() == 0)
    stage.expect("none of them has ended", not any(flow.ended for flow in transfer.flows))
