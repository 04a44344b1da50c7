"""When silence is a stall."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from penstock.policy.stall import Silence, StallMemory, StallRules, decide
from penstock.wire.load import Progress

RULES = StallRules(least_s=5.0, mute_s=10.0, prepare_s=60.0)


def stalled_after(answers: Sequence[tuple[float, Progress | None]], *, accepted: bool = True) -> float | None:
    """Asked at these times and answered so, when it is called a stall; ``None``: never."""
    memory: StallMemory | None = None
    for now, said in answers:
        verdict, memory = decide(Silence(id="a", accepted=accepted, said=said), RULES, memory, now)
        if verdict.stalled:
            return now
    return None


def every_second(said: Progress | None, seconds: int = 120) -> list[tuple[float, Progress | None]]:
    return [(float(second), said) for second in range(seconds)]


def test_a_decoding_sequence_without_tokens_is_stalled() -> None:
    """Its engine goes on with others and computes nothing for it: that is a stall after the least time."""
    answers = [(float(n), Progress(steps=10 * n, step_limit_s=0.1, computed={"a": 7})) for n in range(60)]
    assert stalled_after(answers) == 6.0


@pytest.mark.parametrize("computed", [{"a": None}, {"a": 7}])
def test_an_engine_without_steps_is_stalled(computed: dict[str, int | None]) -> None:
    """Nothing is computed for anybody: after the least time, whether it decodes or waits."""
    assert stalled_after(every_second(Progress(steps=3, step_limit_s=0.1, computed=computed))) == 6.0


def test_a_long_prefill_is_no_stall() -> None:
    """Step after step a prompt is computed, for two minutes; nobody calls it a stall."""
    answers = [(float(n), Progress(steps=n, step_limit_s=0.1, computed={"a": None})) for n in range(120)]
    assert stalled_after(answers) is None


def test_a_long_step_gets_the_time_that_the_engine_says() -> None:
    """A step that may take 40 s by the engine's own measure is waited for so long, and no longer."""
    assert stalled_after(every_second(Progress(steps=3, step_limit_s=40.0, computed={"a": 7}))) == 41.0


def test_an_engine_that_forgot_it_and_one_that_is_mute() -> None:
    """One that took it up and does not know it is given the least time; one that does not answer twice that."""
    assert stalled_after(every_second(Progress(steps=3, step_limit_s=40.0))) == 6.0
    assert stalled_after(every_second(None)) == 11.0


def test_a_request_that_is_still_prepared_gets_more_time() -> None:
    """A long text is tokenised for long before anybody can know of it."""
    assert stalled_after(every_second(Progress(steps=3, step_limit_s=0.0)), accepted=False) == 61.0


def test_an_answer_in_between_begins_anew() -> None:
    """A mute engine that answers once in a while is not mute."""
    alive = Progress(steps=3, step_limit_s=0.0, computed={"a": 7})
    answers = [(float(n), alive if n % 8 == 0 else None) for n in range(60)]
    assert stalled_after(answers) is None
