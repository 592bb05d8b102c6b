"""What a watcher knows, as Prometheus metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nat_rewriter.model.findings import Kind
from nat_rewriter.model.watching import WatchStatus

_STATES = ("live", "stale", "syncing")


class WatchCollector(Collector):
    """Metrics of the status that ``read_status`` returns when they are asked for."""

    def __init__(self, read_status: Callable[[], WatchStatus]) -> None:
        self._read_status = read_status

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics of this moment."""
        status = self._read_status()
        yield _findings(status)
        yield _table_state(status)
        yield GaugeMetricFamily("natctl_flows", "Entries in the flow table.", value=status.entries)
        yield GaugeMetricFamily("natctl_resync_seconds", "Duration of the last resync.", value=status.resync_seconds)
        yield CounterMetricFamily("natctl_events", "Conntrack events received.", value=status.events)
        yield CounterMetricFamily("natctl_events_lost", "Events that the kernel dropped.", value=status.dropped)
        yield CounterMetricFamily("natctl_resyncs", "Dumps of the table after events were lost.", value=status.resyncs)
        yield from _slices(status)


def _findings(status: WatchStatus) -> Metric:
    metric = GaugeMetricFamily("natctl_findings", "Findings that are open, by kind.", labels=["kind", "severity"])
    open_now = Counter(finding.kind for finding in status.findings)
    for kind in Kind:
        metric.add_metric([kind.value, kind.severity.value], open_now[kind])
    return metric


def _table_state(status: WatchStatus) -> Metric:
    metric = GaugeMetricFamily("natctl_table_state", "1 for the state of the flow table.", labels=["state"])
    for state in _STATES:
        metric.add_metric([state], float(state == status.state))
    return metric


def _slices(status: WatchStatus) -> Iterator[Metric]:
    flows = GaugeMetricFamily("natctl_slice_flows", "Flows that leave from a slice.", labels=["slice"])
    used = GaugeMetricFamily("natctl_slice_used_ports", "Ports in use to the busiest destination.", labels=["slice"])
    ports = GaugeMetricFamily("natctl_slice_ports", "Ports that rewriting may use.", labels=["slice"])
    for each in status.slices:
        flows.add_metric([each.name], each.flows)
        used.add_metric([each.name], each.used)
        ports.add_metric([each.name], each.capacity)
    yield from (flows, used, ports)
