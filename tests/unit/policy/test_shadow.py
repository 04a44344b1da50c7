"""Whether a request is copied follows from its id, the rule and how busy everything is."""

from __future__ import annotations

import pytest

from penstock.config.names import Shadow
from penstock.policy.shadow import ShadowView, decide, shadowed

RULE = Shadow(model="next", share=1.0, max_in_flight=2)


def test_the_share_is_drawn_by_the_request_s_id() -> None:
    """The same request is always copied or never, and about the share of all are."""
    ids = [f"{number:x}" for number in range(5000)]
    copied = [id for id in ids if shadowed(id, 0.2)]
    assert len(copied) / len(ids) == pytest.approx(0.2, abs=0.02)
    assert copied == [id for id in ids if shadowed(id, 0.2)]
    assert all(shadowed(id, 1.0) for id in ids)


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (ShadowView(choices=1, in_flight=2, ready=1, waiting=0), "2 of 2 choices are in flight"),
        (ShadowView(choices=2, in_flight=1, ready=1, waiting=0), "1 of 2 choices are in flight, and it has 2"),
        (ShadowView(choices=3, in_flight=0, ready=1, waiting=0), "and it has 3"),
        (ShadowView(choices=1, in_flight=0, ready=0, waiting=0), "no ready replica"),
        (ShadowView(choices=1, in_flight=0, ready=1, waiting=3), "3 requests wait"),
    ],
)
def test_whoever_asks_comes_first(view: ShadowView, words: str) -> None:
    """No copy where the rule's are in flight, where nobody could take it, or where anybody waits."""
    verdict = decide("x", RULE, view)
    assert not verdict.copied and words in verdict.why
    assert decide("x", RULE, ShadowView(choices=1, in_flight=1, ready=1, waiting=0)).copied
    assert decide("x", RULE, ShadowView(choices=2, in_flight=0, ready=1, waiting=0)).copied
