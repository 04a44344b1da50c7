"""The metrics page: readable by Prometheus' own parser, whatever the processes said."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from penstock.events.list import Event, ReplicaChanged, RequestEnded, StepDone
from penstock.events.metrics import CATALOGUE
from penstock.observe.exposition import render
from penstock.observe.folds import Folds
from penstock.observe.samples import Histogram, Sample


def request(model: str = "tiny", duration_s: float = 1.0) -> RequestEnded:
    return RequestEnded(
        id="1",
        route="chat",
        model=model,
        outcome="finished",
        status=200,
        duration_s=duration_s,
        ttft_s=duration_s / 2,
        tpot_s=duration_s / 9,
        prompt_tokens=5,
        output_tokens=7,
    )


def samples_of(*events: Event) -> list[Sample]:
    folds = Folds()
    for event in events:
        folds(event)
    return folds.samples()


def test_no_process_is_an_empty_page() -> None:
    """A controller whose processes are all still starting answers, with nothing."""
    assert render({}) == b""


def test_each_family_is_declared_once_over_all_processes() -> None:
    """Prometheus refuses a page that declares a family twice; processes differ by a label instead."""
    step = StepDone(
        seconds=0.01,
        decode_tokens=1,
        prefill_tokens=0,
        running=1,
        waiting=0,
        preempted=0,
        kv_blocks_used=1,
        kv_blocks_cached=0,
        kv_blocks_total=4,
    )
    page = render(
        {
            "gateway-0": samples_of(request()),
            "engine-0": samples_of(step),
            "engine-1": samples_of(step, step),
            "controller": samples_of(ReplicaChanged(replica="engine-0", phase="ready", restarts=0)),
        }
    ).decode()
    declared = Counter(line.split()[2] for line in page.splitlines() if line.startswith("# TYPE"))
    assert set(declared.values()) == {1}
    steps = {
        line.split()[0]: float(line.split()[1])
        for line in page.splitlines()
        if line.startswith("penstock_engine_step_seconds_count")
    }
    assert steps == {
        'penstock_engine_step_seconds_count{process="engine-0"}': 1.0,
        'penstock_engine_step_seconds_count{process="engine-1"}': 2.0,
    }


def test_a_metric_of_another_release_is_shown_as_it_is() -> None:
    """While processes of two releases run side by side, the page neither fails nor hides anything."""
    foreign = [
        Sample(name="penstock_new_things_total", labels={"kind": "a"}, value=3),
        Sample(name="penstock_new_seconds", histogram=Histogram(edges=[1.0], counts=[1, 2], sum=3.0)),
    ]
    families = {f.name: f for f in text_string_to_metric_families(render({"engine-9": foreign}).decode())}
    assert families["penstock_new_things_total"].samples[0].value == 3
    assert families["penstock_new_seconds"].type == "histogram"
    assert families["penstock_new_seconds"].samples[-1].labels == {"process": "engine-9"}


_text = st.text(st.characters(codec="utf-8"), max_size=20)
_requests = st.builds(request, model=_text, duration_s=st.floats(0, 1e5))


@given(st.dictionaries(_text, st.lists(_requests, max_size=8), max_size=3))
def test_the_page_reads_back_as_what_was_folded(events: dict[str, list[RequestEnded]]) -> None:
    """For any processes, models and times: the parser finds every series, and every histogram is consistent."""
    page = render({process: samples_of(*list_) for process, list_ in events.items()}).decode()
    requests: Counter[str] = Counter()
    for family in text_string_to_metric_families(page):
        metric = CATALOGUE.get(family.name) or CATALOGUE[f"{family.name}_total"]
        assert family.type == metric.kind
        assert family.documentation == metric.help
        buckets: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
        counts: dict[tuple[tuple[str, str], ...], float] = {}
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == {*metric.labels, "process"}
            key = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
            if sample.name.endswith("_bucket"):
                buckets.setdefault(key, []).append((float(sample.labels["le"]), sample.value))
            elif metric.kind == "histogram" and sample.name.endswith("_count"):
                counts[key] = sample.value
            if sample.name == "penstock_requests_total":
                requests[sample.labels["process"]] += int(sample.value)
        assert buckets.keys() == counts.keys()
        for key, series in buckets.items():
            assert [edge for edge, _ in series] == [*metric.buckets, math.inf]
            values = [value for _, value in series]
            assert values == sorted(values) and values[-1] == counts[key]
    assert requests == Counter({process: len(list_) for process, list_ in events.items() if list_})
