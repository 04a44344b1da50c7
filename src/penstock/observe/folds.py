"""Folds events into the catalogue's metrics, in memory.

In: events, through the ``Emit`` port; out: samples.  Never blocks, never raises for an event of the list.
A series appears with its first event and stays: what a process does not do is absent from its samples, not 0.
No lock: a process emits from its event loop's thread only, and asks for samples from the same one.
Memory is bounded: a label that has taken ``MAX_VALUES`` values shows later ones as ``other``.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from math import inf

import penstock
from penstock.events.feeds import FEEDS
from penstock.events.list import Event
from penstock.events.metrics import BUILD_INFO, CATALOGUE, VALUES_DROPPED, Metric
from penstock.observe.samples import Histogram, Sample
from penstock.wire.errors import ERRORS

MAX_VALUES = 256
"""Distinct values per label of one metric; more is a label that should not be one."""
MAX_VALUE_CHARS = 128
OTHER = "other"

_CLOSED = {"code": frozenset(ERRORS) | {"", "cancelled"}}
"""Labels whose values are known beforehand.  A client that left is no error, so the table has no code for it."""


class Folds:
    """Callable as ``ports.Emit``.  One per process."""

    def __init__(self) -> None:
        self._families = {name: _Family(metric) for name, metric in CATALOGUE.items()}
        self._feeds = {
            event: tuple((self._families[f.metric.name], f.labels, f.value, f.absolute) for f in feeds)
            for event, feeds in FEEDS.items()
        }
        self._dropped = self._families[VALUES_DROPPED.name]
        self._families[BUILD_INFO.name].at((penstock.__version__, platform.python_version())).put(1.0, True)

    def __call__(self, event: Event, /) -> None:
        for family, labels, value_of, absolute in self._feeds[type(event)]:
            value = value_of(event)
            if value is None:
                continue
            if not 0.0 <= value < inf:  # also false for NaN, which would stay in a sum for ever
                self._dropped.at((type(event).__name__,)).put(1.0, False)
                continue
            key = labels(event)
            series = family.series.get(key)
            if series is None:
                series = family.at(key)
            series.put(value, absolute)

    def samples(self) -> list[Sample]:
        """Every series there is, in the catalogue's order; histogram counts are cumulative."""
        return [
            series.sample(family.metric.name, dict(zip(family.metric.labels, key, strict=True)))
            for family in self._families.values()
            for key, series in family.series.items()
        ]


class _Counter:
    """A running sum; ``absolute`` puts replace it, for events that carry the count itself."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def put(self, value: float, absolute: bool) -> None:
        if absolute:
            self.value = value
        else:
            self.value += value

    def sample(self, name: str, labels: dict[str, str]) -> Sample:
        return Sample(name=name, labels=labels, value=self.value)


class _Gauge(_Counter):
    """The last value."""

    __slots__ = ()

    def put(self, value: float, absolute: bool) -> None:
        self.value = value


class _Histogram:
    """Counts per bucket (not cumulative while folding: one increment per value) and the sum."""

    __slots__ = ("counts", "edges", "sum")

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.sum = 0.0

    def put(self, value: float, absolute: bool) -> None:
        self.counts[bisect_left(self.edges, value)] += 1  # an edge belongs to the bucket it closes
        self.sum += value

    def sample(self, name: str, labels: dict[str, str]) -> Sample:
        cumulative, total = [], 0
        for count in self.counts:
            total += count
            cumulative.append(total)
        return Sample(
            name=name, labels=labels, histogram=Histogram(edges=list(self.edges), counts=cumulative, sum=self.sum)
        )


_Series = _Counter | _Histogram


class _Family:
    """The series of one metric by their label values, which it keeps few and short."""

    __slots__ = ("_seen", "metric", "series")

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.series: dict[tuple[str, ...], _Series] = {}
        self._seen: list[set[str]] = [set() for _ in metric.labels]

    def at(self, key: tuple[str, ...]) -> _Series:
        """The series of these label values, opened if need be."""
        bounded = tuple(
            self._bounded(label, seen, value)
            for label, seen, value in zip(self.metric.labels, self._seen, key, strict=True)
        )
        series = self.series.get(bounded)
        if series is None:
            series = self.series[bounded] = _open(self.metric)
        return series

    def _bounded(self, label: str, seen: set[str], value: str) -> str:
        if value in seen:
            return value
        allowed = _CLOSED.get(label)
        if len(value) > MAX_VALUE_CHARS or len(seen) >= MAX_VALUES or (allowed is not None and value not in allowed):
            return OTHER
        seen.add(value)
        return value


def _open(metric: Metric) -> _Series:
    if metric.kind == "histogram":
        return _Histogram(metric.buckets)
    return _Gauge() if metric.kind == "gauge" else _Counter()
