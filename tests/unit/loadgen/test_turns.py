"""What engines are asked in turns, and the figures of their seconds."""

from __future__ import annotations

import pytest

from penstock.loadgen.turns import Figure, batch_and_lone, curves, figures, points, shared_prefix


def test_a_batch_and_a_lone_request_are_the_fixed_workload() -> None:
    """16 requests of 2,687 tokens in and 1,288 out, then 32 in and 64 out; the same in every run."""
    batch, lone = batch_and_lone(16, 15000)
    prompts, lengths = batch.batch(1)
    assert (sum(map(len, prompts)), sum(lengths)) == (2687, 1288)
    assert batch.batch(2) == (prompts, lengths)
    assert lone.batch(1) == ([prompts[0][:32]], [64])
    found = figures([batch, lone], {"batch": [12.88, 6.44, 25.76], "lone": [1.0, 2.0, 4.0]})
    assert found["batch"] == Figure(unit="tokens/s", median=100.0, low=50.0, high=200.0, runs=[100.0, 200.0, 50.0])
    assert found["lone"].median == 32.0


def test_a_shared_prefix_is_shared_within_a_run_and_new_in_the_next() -> None:
    """1,024 tokens in common and 64 of each request's own: a prefix cache has none of them before the run."""
    [part] = shared_prefix(15000)
    prompts, lengths = part.batch(1)
    assert len(prompts) == len(lengths) == 32 and set(lengths) == {32}
    assert {len(prompt) for prompt in prompts} == {1088}
    assert len({tuple(prompt[:1024]) for prompt in prompts}) == 1
    assert len({tuple(prompt[1024:]) for prompt in prompts}) == 32
    assert part.batch(2)[0][0][:32] != prompts[0][:32]


def test_curves_take_the_time_of_a_token_from_two_requests_that_differ_in_length_alone() -> None:
    """What both pay for a prompt that is known falls out; prefill is counted where nothing is known."""
    parts = curves(512, 15000, (1, 4))
    assert list(points(512, (1, 4))) == [(256, 1), (512, 1), (256, 4)]
    by_name = {part.name: part.batch(1) for part in parts}
    assert len(by_name) == 9
    assert by_name["cold 256 x 4"][0] == by_name["one 256 x 4"][0] == by_name["more 256 x 4"][0]
    assert by_name["more 256 x 4"][1] == [33] * 4 and by_name["cold 256 x 4"][1] == [1] * 4
    seconds = {name: [0.5] for name in by_name} | {"cold 256 x 4": [2.0], "one 256 x 4": [0.1], "more 256 x 4": [0.42]}
    found = figures(parts, seconds)
    assert found["prefill 256 x 4"].median == 512.0
    assert found["token 256 x 4"].median == pytest.approx(10.0)


def test_better_is_more_tokens_or_fewer_milliseconds() -> None:
    """A ratio above one is ours being better, whatever the unit."""
    assert Figure.of([30.0], "tokens/s").times(Figure.of([20.0], "tokens/s")) == 1.5
    assert Figure.of([20.0], "ms").times(Figure.of([30.0], "ms")) == 1.5
