"""Resuming is decided from the failure, the gap and the rules alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.policy.retry import FailedAttempt, RetryMemory, RetryRules, decide, longer_pause

RULES = RetryRules(max_resumes=3, resume_timeout_s=10.0)


def failed(code: str = "engine_lost", emitted: int = 0, accepted: bool = True, others: int = 1) -> FailedAttempt:
    return FailedAttempt(code=code, replica="a", emitted_tokens=emitted, accepted=accepted, others=others)


@pytest.mark.parametrize("code", ["engine_lost", "not_ready", "draining"])
def test_a_loss_is_resumed_at_once(code: str) -> None:
    """The first loss of a gap pauses nobody, and the lost replica is to be avoided."""
    verdict, _ = decide(failed(code), RULES, RetryMemory(), now=5.0)
    assert verdict.resume and verdict.pause_s == 0 and verdict.deadline == 15.0 and verdict.avoid == {"a"}


@pytest.mark.parametrize("code", ["internal_error", "context_length_exceeded", "engine_protocol"])
def test_what_is_the_same_anywhere_is_final(code: str) -> None:
    """An error of the request or of the code is not tried again."""
    verdict, _ = decide(failed(code), RULES, RetryMemory(), now=0.0)
    assert not verdict.resume and code in verdict.why


def test_progress_begins_a_new_gap() -> None:
    """Losses with tokens between them never add up; losses without do."""
    memory = RetryMemory()
    for emitted in range(1, 50):
        verdict, memory = decide(failed(emitted=emitted), RULES, memory, now=float(emitted * 100))
        assert verdict.resume
    verdicts = []
    for _ in range(3):
        verdict, memory = decide(failed(emitted=49), RULES, memory, now=4900.0)
        verdicts.append(verdict)
    assert [verdict.resume for verdict in verdicts] == [True, True, False]
    assert 0 < verdicts[0].pause_s < verdicts[1].pause_s


def test_a_gap_has_a_deadline() -> None:
    """However few attempts were made, a gap ends when its time is over."""
    _, memory = decide(failed(), RULES, RetryMemory(), now=0.0)
    verdict, _ = decide(failed(), RULES, memory, now=10.0)
    assert not verdict.resume and "10 s" in verdict.why


def test_overload() -> None:
    """Overload is passed on when nothing was promised and nobody is free, waited out once a stream has begun."""
    assert decide(failed("overloaded", accepted=False, others=1), RULES, RetryMemory(), 0.0)[0].resume
    assert not decide(failed("overloaded", accepted=False, others=0), RULES, RetryMemory(), 0.0)[0].resume
    verdict, _ = decide(failed("overloaded", accepted=True, others=0), RULES, RetryMemory(), 0.0)
    assert verdict.resume and verdict.pause_s > 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_pauses_are_drawn_and_bounded(chances: list[float]) -> None:
    """Every pause lies between the first and a second, and never above thrice the one before."""
    last = 0.0
    for chance in chances:
        pause = longer_pause(last, chance)
        assert 0.05 <= pause <= max(0.05, min(3 * last, 1.0))
        last = pause
    assert longer_pause(0.2, 0.1) < longer_pause(0.2, 0.9)
