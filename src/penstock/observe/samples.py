"""Metric samples as they travel between processes: what an engine and a gateway answer to a metrics request.

In and out: JSON.  A sample carries its histogram's edges and label names, so that a reader of another release can
still show it.  Never aggregated on the way: the reader decides.
"""

from __future__ import annotations

import msgspec


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """``counts[i]`` observations were at most ``edges[i]``; the last count, one more than edges, is all of them.

    ``sum`` is the sum of the observed values, in the metric's unit.
    """

    edges: list[float]
    counts: list[int]
    sum: float

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.edges) + 1:
            raise ValueError(f"a histogram with {len(self.edges)} edges and {len(self.counts)} counts")
        if any(later < earlier for earlier, later in zip(self.counts, self.counts[1:], strict=False)):
            raise ValueError("a histogram's cumulative counts fall")


class Sample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One time series now.  ``histogram`` is set for histograms; ``value`` is the number of all others."""

    name: str
    labels: dict[str, str] = {}
    value: float = 0.0
    histogram: Histogram | None = None


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(list[Sample]).decode
"""``decode(data)`` raises ``msgspec.ValidationError`` or ``DecodeError`` for anything that is not a list of samples."""
