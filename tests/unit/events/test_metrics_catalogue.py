"""The metrics catalogue: complete over the events, consistent in its names, bounded in its labels."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import get_args

import pytest

from penstock.events.feeds import FEEDS
from penstock.events.list import Event, StepDone
from penstock.events.metrics import BUILD_INFO, CATALOGUE, VALUES_DROPPED, Metric

ABOUT_THE_PROCESS = {BUILD_INFO.name, VALUES_DROPPED.name}
"""Set by the folds themselves, not by an event."""

METRICS = list(CATALOGUE.values())


def test_every_event_feeds_a_metric() -> None:
    """No event of the list is unknown to the catalogue, and the catalogue knows no others."""
    assert set(FEEDS) == set(get_args(Event))


def test_every_metric_is_fed() -> None:
    """A metric that nothing feeds would be a promise without numbers."""
    fed = {feed.metric.name for feeds in FEEDS.values() for feed in feeds}
    assert fed | ABOUT_THE_PROCESS == set(CATALOGUE)
    assert not fed & ABOUT_THE_PROCESS


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_convention(metric: Metric) -> None:
    """A name starts with penstock_, ends with its unit, and has _total exactly when it is a counter."""
    assert re.fullmatch(r"penstock_[a-z0-9_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.name.removesuffix("_total").endswith(metric.unit)
    assert not re.search(r"_(count|sum|bucket|created)$", metric.name), "a suffix that Prometheus keeps for itself"
    assert metric.help.endswith(".") and "\n" not in metric.help


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_labels_are_few_and_never_identify_a_request(metric: Metric) -> None:
    """Each label value is a time series for ever: no ids, no keys, no tenants' words, and no reserved names."""
    assert len(set(metric.labels)) == len(metric.labels) <= 5
    assert not {"id", "request", "request_id", "key", "user", "tenant", "prompt", "process", "le"} & set(metric.labels)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_buckets_rise_and_belong_to_histograms(metric: Metric) -> None:
    """Exactly the histograms have edges, in seconds, rising, at most 24 of them, without +Inf."""
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert len(metric.buckets) <= 24
    assert all(0 < edge < 10_000 for edge in metric.buckets)


@pytest.mark.parametrize(
    ("name", "target_s"),
    [
        ("penstock_time_to_first_token_seconds", 0.5),
        ("penstock_time_to_first_token_seconds", 1.0),
        ("penstock_time_per_output_token_seconds", 0.05),
        ("penstock_time_per_output_token_seconds", 0.1),
        ("penstock_request_duration_seconds", 10.0),
    ],
)
def test_common_objectives_are_edges(name: str, target_s: float) -> None:
    """The share of requests within a usual objective can be read exactly, without interpolation."""
    assert target_s in CATALOGUE[name].buckets


def test_kv_blocks_by_state_add_up_to_all() -> None:
    """Used, cached and free are the whole KV memory, each block counted once."""
    step = StepDone(
        seconds=0.01,
        decode_tokens=1,
        prefill_tokens=0,
        running=1,
        waiting=0,
        preempted=0,
        kv_blocks_used=3,
        kv_blocks_cached=4,
        kv_blocks_total=10,
    )
    by_state = {
        feed.labels(step): feed.value(step)
        for feed in FEEDS[StepDone]
        if feed.metric.name == "penstock_engine_kv_blocks"
    }
    assert by_state == {("used",): 3, ("cached",): 4, ("free",): 3}


def test_the_catalogue_loads_no_metrics_library() -> None:
    """Whoever only names metrics pays for neither prometheus-client nor anything else heavy."""
    code = (
        "import sys, penstock.events.feeds; "
        "sys.exit(str({'prometheus_client', 'torch', 'aiohttp', 'uvicorn'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip() == ""
