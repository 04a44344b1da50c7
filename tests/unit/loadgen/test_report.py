"""Arithmetic of the report."""

from __future__ import annotations

import itertools
from array import array

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.loadgen.report import Outcome, Slo, distribution, percentile, summarise
from penstock.wire.errors import Problem


def _done(scheduled_s: float, late_s: float, ttft_s: float, gap_s: float, tokens: int) -> Outcome:
    first = scheduled_s + late_s + ttft_s
    return Outcome(
        scheduled_s=scheduled_s,
        sent_s=scheduled_s + late_s,
        first_s=first,
        last_s=first + gap_s * (tokens - 1),
        finished_s=first + gap_s * (tokens - 1),
        gaps_s=array("d", itertools.repeat(gap_s, tokens - 1)),
        prompt_tokens=10,
        output_tokens=tokens,
        num_chunks=tokens,
        usage_reported=True,
    )


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_percentiles_are_nearest_rank(samples: list[float], percent: float) -> None:
    """A percentile is the smallest sample that at least that share of all samples does not exceed."""
    value = percentile(sorted(samples), percent)
    needed = percent / 100 * len(samples)
    assert value in samples
    assert sum(sample <= value for sample in samples) >= needed
    assert value == min(samples) or sum(sample < value for sample in samples) < needed


def test_no_samples_have_no_figures() -> None:
    """An empty distribution says so instead of inventing zeros."""
    assert distribution([None]).count == 0 and distribution([]).p99 is None


def test_latency_counts_from_the_schedule() -> None:
    """A request that was sent late is charged with the delay; the other clock is reported beside it."""
    report = summarise([_done(2.0, 0.5, 0.25, 0.1, 5)], target={}, workload={})
    assert report.ttft_s.p50 == pytest.approx(0.75)
    assert report.e2e_s.p99 == pytest.approx(1.15)
    assert report.from_send.ttft_s.p50 == pytest.approx(0.25)
    assert report.from_send.e2e_s.max == pytest.approx(0.65)
    assert report.lag_s.max == pytest.approx(0.5)
    assert report.tpot_s.mean == pytest.approx(0.1)
    assert report.itl_s.count == 4
    assert report.duration_s == pytest.approx(3.15)


def test_goodput_needs_every_bound() -> None:
    """Good requests met all bounds; failures count against the share; requests cut short do not count."""
    outcomes = [
        _done(0.0, 0.0, 0.1, 0.01, 11),
        _done(1.0, 0.0, 0.6, 0.01, 11),
        _done(2.0, 0.0, 0.1, 0.09, 11),
        _done(3.0, 0.0, 0.1, 5.0, 1),
        Outcome(4.0, sent_s=4.0, finished_s=10.0, error="overloaded", message="try later"),
        Outcome(5.0, sent_s=5.0),
        Outcome(6.0),
    ]
    report = summarise(outcomes, target={}, workload={}, slo=Slo(ttft=0.5, tpot=0.05))
    assert report.goodput is not None
    assert report.goodput.requests == 2
    assert report.goodput.share == pytest.approx(2 / 5)
    assert report.goodput.requests_per_s == pytest.approx(0.2)
    assert (report.requests_ok, report.requests_failed, report.requests_cut_short) == (4, 1, 2)
    assert report.requests_sent == 6
    assert report.errors == {"overloaded": 1} and report.error_messages == {"overloaded": "try later"}
    assert report.output_tokens == 34 and report.output_tokens_per_s == pytest.approx(3.4)


def test_bounds_on_end_to_end() -> None:
    """The end-to-end bound is on the time since the schedule, and a bound that is met exactly is met."""
    outcome = _done(0.0, 0.0, 1.0, 0.0, 1)
    assert Slo(e2e=1.0).met_by(outcome) and not Slo(e2e=0.99).met_by(outcome)


@pytest.mark.parametrize(
    "text", ["", "ttft", "ttft=", "ttft=fast", "speed=1", "tpot=0", "e2e=-1", "ttft=nan", "e2e=inf"]
)
def test_bad_slos_are_refused(text: str) -> None:
    """A bound without a known name and positive seconds is an error that names the setting."""
    with pytest.raises(Problem) as caught:
        Slo.parse(text)
    assert caught.value.param == "slo"


def test_slos_are_parsed() -> None:
    """Any part of the three bounds may be given."""
    assert Slo.parse("ttft=0.5, e2e=10") == Slo(ttft=0.5, e2e=10.0)


def test_nothing_measured_is_still_a_report() -> None:
    """A run in which nothing ended sums up to zeros and encodes as JSON."""
    report = summarise([Outcome(0.0)], target={}, workload={}, slo=Slo(ttft=1.0), interrupted=True)
    assert msgspec.json.decode(msgspec.json.encode(report))["requests_per_s"] == 0
