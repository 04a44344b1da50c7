"""Whether another model is asked follows from the failure and from what is left."""

from __future__ import annotations

import pytest

from penstock.policy.fallback import FALLS_BACK, Candidate, decide

READY = Candidate(model="b", ready=1)


@pytest.mark.parametrize("code", sorted(FALLS_BACK))
def test_a_model_that_cannot_is_left_for_the_next_that_can(code: str) -> None:
    """The first one with a ready replica is asked, and the why has both."""
    verdict = decide(code, "a", None, [Candidate(model="x", ready=0), READY])
    assert verdict.model == "b" and verdict.why == f"a answered {code}; x has no ready replica"


@pytest.mark.parametrize("code", ["rate_limit_exceeded", "insufficient_quota", "invalid_value", "internal_error"])
def test_what_is_the_caller_s_own_or_a_bug_stays(code: str) -> None:
    """Limits are not got round by a fallback, and a wrong request is wrong anywhere."""
    assert decide(code, "a", None, [READY]).model is None


def test_a_short_context_is_left_for_a_longer_one_only() -> None:
    """A model that is known to take no more than the one that failed is passed over."""
    rest = [Candidate(model="b", ready=1, context_tokens=4096), Candidate(model="c", ready=1, context_tokens=8192)]
    assert decide("context_length_exceeded", "a", 4096, rest).model == "c"
    assert decide("overloaded", "a", 4096, rest).model == "b"
    nowhere = decide("context_length_exceeded", "a", 8192, rest)
    assert nowhere.model is None and "c has 8192 tokens of context" in nowhere.why
