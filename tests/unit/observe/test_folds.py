"""Folds: what each event does to the numbers, what they cost, and what bounds them."""

from __future__ import annotations

import math
import timeit
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.events.list import (
    Event,
    ReplicaChanged,
    RequestEnded,
    RequestReceived,
    SequenceEnded,
    StepDone,
    StreamResumed,
)
from penstock.observe.folds import MAX_VALUES, Folds
from penstock.observe.samples import Histogram, Sample, decode, encode
from penstock.ports import Emit
from penstock.wire.errors import ERRORS


def ended(**changes: Any) -> RequestEnded:
    request = RequestEnded(
        id="chatcmpl-1",
        route="/v1/chat/completions",
        model="tiny",
        outcome="finished",
        status=200,
        duration_s=1.2,
        ttft_s=0.2,
        tpot_s=0.03,
        prompt_tokens=10,
        cached_tokens=4,
        output_tokens=7,
    )
    return msgspec.structs.replace(request, **changes)


def step(**changes: Any) -> StepDone:
    done = StepDone(
        seconds=0.02,
        decode_tokens=3,
        prefill_tokens=5,
        running=4,
        waiting=2,
        preempted=1,
        kv_blocks_used=6,
        kv_blocks_cached=1,
        kv_blocks_total=16,
    )
    return msgspec.structs.replace(done, **changes)


def find(folds: Folds, name: str, **labels: str) -> Sample:
    matches = [sample for sample in folds.samples() if sample.name == name and labels.items() <= sample.labels.items()]
    assert len(matches) == 1, (name, labels, matches)
    return matches[0]


def names(folds: Folds) -> set[str]:
    return {sample.name for sample in folds.samples()}


def test_a_fresh_process_says_only_what_it_is() -> None:
    """What a process does not do is absent, not 0: a gateway shows no engine's gauges."""
    folds: Emit = Folds()
    assert isinstance(folds, Folds)
    (sample,) = folds.samples()
    assert sample.name == "penstock_build_info"
    assert set(sample.labels) == {"version", "python"} and sample.value == 1


def test_a_finished_request_is_counted_and_timed() -> None:
    """One terminal event moves the count, the three histograms and the token counters."""
    folds = Folds()
    folds(RequestReceived(route="/v1/chat/completions"))
    folds(ended())
    assert find(folds, "penstock_requests_received_total").value == 1
    request = find(folds, "penstock_requests_total")
    assert request.value == 1
    assert request.labels == {
        "route": "/v1/chat/completions",
        "model": "tiny",
        "outcome": "finished",
        "status": "200",
        "code": "",
    }
    for name, value in [
        ("penstock_time_to_first_token_seconds", 0.2),
        ("penstock_time_per_output_token_seconds", 0.03),
        ("penstock_request_duration_seconds", 1.2),
    ]:
        histogram = find(folds, name).histogram
        assert histogram is not None
        assert histogram.counts[-1] == 1 and histogram.sum == value
    assert find(folds, "penstock_prompt_tokens_total", model="tiny").value == 10
    assert find(folds, "penstock_cached_tokens_total", model="tiny").value == 4
    assert find(folds, "penstock_output_tokens_total", model="tiny").value == 7


def test_a_rejected_request_has_no_tokens_and_no_first_token() -> None:
    """A request that never reached a model leaves the latency of tokens alone."""
    folds = Folds()
    folds(
        RequestEnded(
            id="1", route="r", model="", outcome="rejected", status=404, code="model_not_found", duration_s=0.001
        )
    )
    assert names(folds) == {"penstock_build_info", "penstock_requests_total", "penstock_request_duration_seconds"}


def test_a_resume_is_counted_with_its_gap() -> None:
    """Lost engines are visible as a count and as the time their streams stood still."""
    folds = Folds()
    folds(StreamResumed(id="1", model="tiny", replica="engine-1", emitted_tokens=9, gap_s=0.7))
    assert find(folds, "penstock_stream_resumes_total", model="tiny").value == 1
    histogram = find(folds, "penstock_stream_resume_gap_seconds", model="tiny").histogram
    assert histogram is not None and histogram.sum == 0.7


def test_steps_add_tokens_and_show_the_last_state() -> None:
    """Tokens, preemptions and times add up over steps; running, waiting and blocks are the last step's."""
    folds = Folds()
    folds(step())
    folds(step(running=1, waiting=0, preempted=0, kv_blocks_used=2))
    assert find(folds, "penstock_engine_step_tokens_total", phase="decode").value == 6
    assert find(folds, "penstock_engine_step_tokens_total", phase="prefill").value == 10
    assert find(folds, "penstock_engine_preemptions_total").value == 1
    assert find(folds, "penstock_engine_running_sequences").value == 1
    assert find(folds, "penstock_engine_waiting_sequences").value == 0
    assert find(folds, "penstock_engine_kv_blocks", state="free").value == 13
    histogram = find(folds, "penstock_engine_step_seconds").histogram
    assert histogram is not None and histogram.counts[-1] == 2


def test_sequences_are_counted_by_reason() -> None:
    """The engine's own token counts do not depend on a gateway having seen the request."""
    folds = Folds()
    for reason in ("stop", "stop", "length"):
        folds(SequenceEnded(reason=reason, prompt_tokens=5, cached_tokens=2, output_tokens=3))
    assert find(folds, "penstock_engine_sequences_total", reason="stop").value == 2
    assert find(folds, "penstock_engine_sequence_tokens_total", kind="cached").value == 6


def test_a_replica_is_in_one_phase_and_restarts_are_not_added_up() -> None:
    """The event carries the number of restarts itself, so the counter takes it instead of adding it."""
    folds = Folds()
    for phase, restarts in [("loading", 0), ("ready", 0), ("exited", 1), ("ready", 1)]:
        folds(ReplicaChanged(replica="engine-0", phase=phase, restarts=restarts))
    phases = {s.labels["phase"]: s.value for s in folds.samples() if s.name == "penstock_replica_phase"}
    assert {phase for phase, value in phases.items() if value} == {"ready"}
    assert len(phases) == 6
    assert find(folds, "penstock_replica_restarts_total", replica="engine-0").value == 1


@pytest.mark.parametrize(("value", "bucket"), [(0.0, 0), (0.01, 0), (0.011, 1), (160.0, 17), (160.5, 18)])
def test_an_edge_belongs_to_the_bucket_it_closes(value: float, bucket: int) -> None:
    """Prometheus reads ``le`` as at most."""
    folds = Folds()
    folds(ended(ttft_s=value))
    histogram = find(folds, "penstock_time_to_first_token_seconds").histogram
    assert histogram is not None
    assert histogram.counts.index(1) == bucket


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.5])
def test_an_impossible_value_is_left_out_and_counted(value: float) -> None:
    """One NaN must not stay in a sum for ever, nor vanish unseen."""
    folds = Folds()
    folds(ended(ttft_s=value))
    assert "penstock_time_to_first_token_seconds" not in names(folds)
    assert find(folds, "penstock_event_values_dropped_total", event="RequestEnded").value == 1
    decode(encode(folds.samples()))


def test_label_values_are_bounded() -> None:
    """Ten thousand models, a very long one and an unlisted code cannot grow the memory without end."""
    folds = Folds()
    for number in range(10_000):
        folds(ended(model=f"model-{number}"))
    folds(ended(model="m" * 1_000_000))
    folds(ended(code="no_such_code"))
    models = {s.labels["model"] for s in folds.samples() if s.name == "penstock_requests_total"}
    assert len(models) == MAX_VALUES + 1 and "other" in models
    assert {s.labels["code"] for s in folds.samples() if s.name == "penstock_requests_total"} == {"", "other"}
    total = sum(s.value for s in folds.samples() if s.name == "penstock_requests_total")
    assert total == 10_002, "values that are not shown by name are still counted"


def test_every_code_that_can_end_a_request_is_shown_by_name() -> None:
    """The error table's codes, and what a client that left is counted under."""
    codes = {*ERRORS, "", "cancelled"}
    folds = Folds()
    for code in codes:
        folds(ended(outcome="failed", code=code))
    assert {s.labels["code"] for s in folds.samples() if s.name == "penstock_requests_total"} == codes


@pytest.mark.parametrize("event", [ended(), step()], ids=["RequestEnded", "StepDone"])
def test_an_event_costs_microseconds(event: Event) -> None:
    """About 2.5 microseconds for the two dearest events; the bound leaves room for a busy machine."""
    folds = Folds()
    call: Callable[[], None] = lambda: folds(event)
    assert min(timeit.repeat(call, number=1000, repeat=20)) / 1000 < 25e-6


_seconds = st.floats(min_value=0, max_value=1e6)
_tokens = st.integers(min_value=0, max_value=10**9)
_events = st.one_of(
    st.builds(RequestReceived, route=st.text()),
    st.builds(
        RequestEnded,
        id=st.text(),
        route=st.text(),
        model=st.text(),
        outcome=st.sampled_from(["finished", "failed", "cancelled", "rejected"]),
        status=st.integers(200, 599),
        code=st.sampled_from(["", *ERRORS]),
        duration_s=_seconds,
        ttft_s=st.none() | _seconds,
        tpot_s=st.none() | _seconds,
        prompt_tokens=_tokens,
        cached_tokens=_tokens,
        output_tokens=_tokens,
    ),
    st.builds(SequenceEnded, reason=st.text(), prompt_tokens=_tokens, cached_tokens=_tokens, output_tokens=_tokens),
    st.builds(ReplicaChanged, replica=st.text(), phase=st.sampled_from(["ready", "exited"]), restarts=_tokens),
)


@given(st.lists(_events, max_size=20))
def test_samples_survive_the_way_to_the_controller(events: list[Event]) -> None:
    """What a process encodes is what the controller decodes, for any events and any text in them."""
    folds = Folds()
    for event in events:
        folds(event)
    samples = folds.samples()
    assert decode(encode(samples)) == samples


@pytest.mark.parametrize("counts", [[1, 2], [1, 0, 2], []])
def test_a_histogram_that_contradicts_itself_is_refused(counts: list[int]) -> None:
    """Counts that fall, or that do not match the edges, are an error where they are read."""
    data = msgspec.json.encode([{"name": "x", "histogram": {"edges": [1.0, 2.0], "counts": counts, "sum": 1.0}}])
    with pytest.raises(msgspec.ValidationError):
        decode(data)
    with pytest.raises(ValueError, match="histogram"):
        Histogram(edges=[1.0, 2.0], counts=counts, sum=1.0)
