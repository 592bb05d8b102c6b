"""What a proxy counts, as Prometheus metrics. docs/proxy.md lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nat_rewriter.proxy.outcomes import Outcome
from nat_rewriter.proxy.status import ProxyStatus


class ProxyCollector(Collector):
    """Metrics of the moment they are asked for."""

    def __init__(self, read_status: Callable[[], ProxyStatus]) -> None:
        self._read_status = read_status

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics of this moment."""
        status = self._read_status()
        yield GaugeMetricFamily("natctl_proxy_workers", "Workers that take connections.", value=status.workers)
        yield GaugeMetricFamily("natctl_proxy_draining_workers", "Workers of before a reload.", value=status.draining)
        yield CounterMetricFamily("natctl_proxy_restarts", "Workers started after one died.", value=status.restarts)
        yield CounterMetricFamily("natctl_proxy_reloads", "Configurations read again.", value=status.reloads)
        yield _gauge(status, "natctl_proxy_connections", "Connections there are.", "active")
        yield _counter(status, "natctl_proxy_accepted", "Connections taken in.", "accepted")
        yield _counter(status, "natctl_proxy_port_tries", "Source ports that were taken by others.", "port_tries")
        yield _counter(status, "natctl_proxy_untold", "Ends of connections left out of the log.", "untold")
        yield _bytes(status)
        yield _ended(status)


def _gauge(status: ProxyStatus, name: str, text: str, attribute: str) -> Metric:
    metric = GaugeMetricFamily(name, text, labels=["proxy"])
    for proxy, counts in status.counts.items():
        metric.add_metric([proxy], getattr(counts, attribute))
    return metric


def _counter(status: ProxyStatus, name: str, text: str, attribute: str) -> Metric:
    metric = CounterMetricFamily(name, text, labels=["proxy"])
    for proxy, counts in status.counts.items():
        metric.add_metric([proxy], getattr(counts, attribute))
    return metric


def _bytes(status: ProxyStatus) -> Metric:
    metric = CounterMetricFamily("natctl_proxy_bytes", "Bytes relayed.", labels=["proxy", "direction"])
    for proxy, counts in status.counts.items():
        metric.add_metric([proxy, "up"], counts.bytes_up)
        metric.add_metric([proxy, "down"], counts.bytes_down)
    return metric


def _ended(status: ProxyStatus) -> Metric:
    metric = CounterMetricFamily("natctl_proxy_ended", "Connections that ended, and how.", labels=["proxy", "outcome"])
    for proxy, counts in status.counts.items():
        for outcome in Outcome:
            metric.add_metric([proxy, outcome.word], counts.ended[outcome])
    return metric
