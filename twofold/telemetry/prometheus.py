"""Metrics in the exposition format of Prometheus.

Pure.  Imported at the first scrape: prometheus_client takes 0.1 s to import.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from twofold.telemetry import histograms

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# The upper bounds are 2**4 us (16 us) to 2**27 us (134 s).  Shorter durations are in the first bucket, longer
# ones in "+Inf".
SHOWN_BUCKETS = range(4, 28)

Labels = str | tuple[str, ...]
Samples = Iterable[tuple[Labels, float]]  # (value of the label, or values of the labels; value of the metric)


@dataclass(frozen=True, slots=True)
class Families:
    """Makes metric families; their names begin with `prefix`."""

    prefix: str

    def counter(self, name: str, help_text: str, count: float) -> Metric:
        """One counter without labels."""
        return CounterMetricFamily(self.prefix + name, help_text, value=count)

    def counters(self, name: str, help_text: str, labels: Labels, samples: Samples) -> Metric:
        """Counters, one for each value of `labels`."""
        return _filled(CounterMetricFamily(self.prefix + name, help_text, labels=_each(labels)), samples)

    def gauge(self, name: str, help_text: str, amount: float) -> Metric:
        """One gauge without labels."""
        return GaugeMetricFamily(self.prefix + name, help_text, value=amount)

    def gauges(self, name: str, help_text: str, labels: Labels, samples: Samples) -> Metric:
        """Gauges, one for each value of `labels`."""
        return _filled(GaugeMetricFamily(self.prefix + name, help_text, labels=_each(labels)), samples)

    def histogram(self, name: str, help_text: str, cells: Sequence[int], start: int) -> Metric:
        """The histogram that begins at the cell `start`, in seconds."""
        counts = histograms.counts(cells, start)
        shown = [(repr(2**i / 1e6), float(sum(counts[: i + 1]))) for i in SHOWN_BUCKETS]
        shown.append(("+Inf", float(sum(counts))))
        sum_s = cells[start + histograms.SUM] / 1e6
        return HistogramMetricFamily(
            f"{self.prefix}{name}_seconds", help_text, buckets=shown, sum_value=sum_s
        )


def _each(labels: Labels) -> tuple[str, ...]:
    return (labels,) if isinstance(labels, str) else labels


def _filled(family: CounterMetricFamily | GaugeMetricFamily, samples: Samples) -> Metric:
    for values, amount in samples:
        family.add_metric(_each(values), amount)
    return family


@dataclass(frozen=True, slots=True, eq=False)
class _Collected(Collector):
    """The collector interface of prometheus_client, for the families of one scrape."""

    families: Iterable[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families


def exposition(families: Iterable[Metric]) -> bytes:
    """The body of the answer to a scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(families))
    return generate_latest(registry)
