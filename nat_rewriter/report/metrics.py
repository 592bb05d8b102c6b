"""What a watcher knows, and what the kernel counts, as Prometheus metrics. docs/watch.md lists them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nat_rewriter import __version__
from nat_rewriter.model.actions import Result, Verb
from nat_rewriter.model.findings import Kind
from nat_rewriter.model.watching import ConntrackCounts, RecorderStatus, WatchStatus

_STATES = ("live", "stale", "syncing")
# The counters of struct ip_conntrack_stat: include/linux/netfilter/nf_conntrack_common.h.
_CPU_COUNTERS = {
    "found": "Searches for a free NAT tuple that met one in use.",
    "invalid": "Packets that could not be tracked.",
    "insert": "Entries inserted; newer kernels do not count them.",
    "insert_failed": "Entries that lost against one with the same tuple: NAT that found no free port among them.",
    "drop": "Packets dropped because their entry could not be made, for want of a free tuple or of memory.",
    "early_drop": "Entries ended early because the table was full.",
    "error": "ICMP errors that could not be tracked.",
    "search_restart": "Searches begun again because the table changed under them.",
    "clash_resolve": "Insertions that lost a race and were resolved.",
    "chain_toolong": "Entries not inserted because their hash chain was too long.",
}


class WatchCollector(Collector):
    """Metrics of the status, and of the kernel's counters where there are any, of the moment they are asked for."""

    def __init__(
        self,
        read_status: Callable[[], WatchStatus],
        read_counts: Callable[[], ConntrackCounts | None] = lambda: None,
    ) -> None:
        self._read_status, self._read_counts = read_status, read_counts

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics of this moment."""
        status = self._read_status()
        yield _build()
        yield from _findings(status)
        yield _actions(status)
        yield _table_state(status)
        yield GaugeMetricFamily("natctl_flows", "Entries in the flow table.", value=status.entries)
        yield GaugeMetricFamily("natctl_resync_seconds", "Duration of the last resync.", value=status.resync_seconds)
        yield CounterMetricFamily("natctl_events", "Conntrack events received.", value=status.events)
        yield CounterMetricFamily("natctl_events_lost", "Events that the kernel dropped.", value=status.dropped)
        yield CounterMetricFamily("natctl_resyncs", "Dumps of the table after events were lost.", value=status.resyncs)
        yield from _slices(status)
        yield from _history(status.recorder)
        yield from _conntrack(self._read_counts())


def _build() -> Metric:
    metric = GaugeMetricFamily("natctl_build_info", "1, with the version of natctl.", labels=["version"])
    metric.add_metric([__version__], 1)
    return metric


def _findings(status: WatchStatus) -> Iterator[Metric]:
    labels = ["kind", "severity"]
    now = GaugeMetricFamily("natctl_findings", "Findings that are open, by kind.", labels=labels)
    ever = CounterMetricFamily("natctl_findings_opened", "Findings that opened since the watch began.", labels=labels)
    open_now = Counter(finding.kind for finding in status.findings)
    for kind in Kind:
        now.add_metric([kind.value, kind.severity.value], open_now[kind])
        ever.add_metric([kind.value, kind.severity.value], status.opened.get(kind, 0))
    yield from (now, ever)


def _actions(status: WatchStatus) -> Metric:
    metric = CounterMetricFamily("natctl_actions", "What --heal and --abort did.", labels=["action", "result"])
    for verb, result in product(Verb, Result):
        metric.add_metric([verb.value, result.value], status.actions.get((verb, result), 0))
    return metric


def _table_state(status: WatchStatus) -> Metric:
    metric = GaugeMetricFamily("natctl_table_state", "1 for the state of the flow table.", labels=["state"])
    for state in _STATES:
        metric.add_metric([state], float(state == status.state))
    return metric


def _slices(status: WatchStatus) -> Iterator[Metric]:
    busiest = "to the busiest destination"
    flows = GaugeMetricFamily("natctl_slice_flows", "Flows that leave from a slice.", labels=["slice"])
    ports = GaugeMetricFamily("natctl_slice_ports", "Ports that rewriting may use.", labels=["slice"])
    used = GaugeMetricFamily("natctl_slice_used_ports", f"Ports in use {busiest}.", labels=["slice"])
    findable = GaugeMetricFamily(
        "natctl_slice_findable_ports", f"Free ports that new flows {busiest} would find.", labels=["slice"]
    )
    for each in status.slices:
        flows.add_metric([each.name], each.flows)
        ports.add_metric([each.name], each.capacity)
        used.add_metric([each.name], each.used)
        findable.add_metric([each.name], each.findable)
    yield from (flows, ports, used, findable)


def _history(recorder: RecorderStatus | None) -> Iterator[Metric]:
    if recorder is None:
        return
    yield CounterMetricFamily("natctl_history_written", "Sightings of flows that are on disk.", value=recorder.written)
    yield CounterMetricFamily(
        "natctl_history_lost", "Entries and sightings that the history will never have.", value=recorder.lost
    )
    yield GaugeMetricFamily("natctl_history_queued", "Entries that wait to be written.", value=recorder.queued)
    yield GaugeMetricFamily(
        "natctl_history_failing", "1 while nothing can be written.", value=float(bool(recorder.problem))
    )


def _conntrack(counts: ConntrackCounts | None) -> Iterator[Metric]:
    if counts is None:
        return
    yield GaugeMetricFamily("natctl_conntrack_entries", "Entries in the kernel's table.", value=counts.entries)
    yield GaugeMetricFamily("natctl_conntrack_max_entries", "How many it may hold.", value=counts.max_entries)
    for name, text in _CPU_COUNTERS.items():
        metric = CounterMetricFamily(f"natctl_conntrack_{name}", text, labels=["cpu"])
        for row in counts.cpus:
            metric.add_metric([str(row["cpu"])], row[name])
        yield metric
