"""Samples of many processes as one page of Prometheus' text format.

In: samples by process label; out: bytes.  Each family appears once, with the label ``process`` telling whose it is.
Never adds processes up: that is the reader's ``sum without (process)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from penstock.events.metrics import CATALOGUE, Metric
from penstock.observe.samples import Sample

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(sources: Mapping[str, Sequence[Sample]]) -> bytes:
    """The page for ``{"gateway-0": samples, "engine-0": samples, ...}``.

    A sample of a metric that this release does not know (a process of another release) is shown as it is, untyped.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(sources))
    return generate_latest(registry)


class _Page(Collector):
    """What prometheus-client asks for its families: in the catalogue's order, unknown ones behind."""

    def __init__(self, sources: Mapping[str, Sequence[Sample]]) -> None:
        self._sources = sources

    def collect(self) -> Iterable[Family]:
        families: dict[str, Family] = {name: _family(metric) for name, metric in CATALOGUE.items()}
        for process, samples in self._sources.items():
            for sample in samples:
                family = families.get(sample.name)
                if family is None:
                    family = families[sample.name] = _unknown(sample)
                _add(family, sample, {**sample.labels, "process": process})
        return [family for family in families.values() if family.samples]


def _family(metric: Metric) -> Family:
    return Family(metric.name.removesuffix("_total"), metric.help, metric.kind)


def _unknown(sample: Sample) -> Family:
    kind = "histogram" if sample.histogram is not None else "unknown"
    return Family(sample.name, "Not in this release's catalogue.", kind)


def _add(family: Family, sample: Sample, labels: dict[str, str]) -> None:
    histogram = sample.histogram
    if histogram is None:
        family.add_sample(sample.name, labels, sample.value)
        return
    for edge, count in zip([*map(str, histogram.edges), "+Inf"], histogram.counts, strict=True):
        family.add_sample(f"{sample.name}_bucket", {**labels, "le": edge}, count)
    family.add_sample(f"{sample.name}_count", labels, histogram.counts[-1])
    family.add_sample(f"{sample.name}_sum", labels, histogram.sum)
