"""Routing decides by what is outstanding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from penstock.config.desired import Balance
from penstock.policy.rates import Rates
from penstock.policy.route import Asked, choose, marginal_s


@dataclass
class View:
    id: str
    routable: bool = True
    outstanding_tokens: int = 0
    outstanding_requests: int = 0
    outstanding_prefill: int = 0
    decoding: int = 0
    kv_use: float = 0.0
    rates: Rates = Rates()
    last_routed: int = 0


def test_fewest_tokens_win() -> None:
    """The replica with the fewest outstanding tokens is chosen, and the why has the numbers."""
    verdict = choose([View("a", outstanding_tokens=9), View("b", outstanding_tokens=3, outstanding_requests=5)])
    assert verdict.replica == "b" and "3 in 5 requests" in verdict.why


def test_ties_go_round() -> None:
    """Among equals the one that was not chosen for longest is chosen."""
    assert choose([View("a", last_routed=2), View("b", last_routed=1)]).replica == "b"


def test_avoided_replicas_are_the_last_resort() -> None:
    """A replica to avoid is taken only when no other is routable."""
    views = [View("a"), View("b", outstanding_tokens=99)]
    assert choose(views, frozenset({"a"})).replica == "b"
    assert choose(views[:1], frozenset({"a"})).replica == "a"


def test_nobody_is_ready() -> None:
    """Replicas that are not routable are never chosen."""
    verdict = choose([View("a", routable=False)])
    assert verdict.replica is None and "none of 1" in verdict.why


REPLICAS = st.lists(
    st.builds(
        View,
        id=st.sampled_from("abcdefgh"),
        routable=st.booleans(),
        outstanding_tokens=st.integers(0, 50_000),
        outstanding_prefill=st.integers(0, 50_000),
        decoding=st.integers(0, 200),
        kv_use=st.floats(0, 1),
    ),
    max_size=6,
    unique_by=lambda view: view.id,
)
ASKED = st.builds(Asked, st.integers(0, 10_000), st.integers(0, 1000), st.none() | st.integers(0, 2**32 - 1))


@given(REPLICAS, st.frozensets(st.sampled_from("abcdefgh")), st.sampled_from(get_args(Balance)), ASKED)
def test_whoever_is_chosen_can_take_it(
    views: list[View], avoid: frozenset[str], balance: Balance, asked: Asked
) -> None:
    """It is ready, avoided only where all are; somebody is chosen where anybody is ready, with a why."""
    verdict = choose(views, avoid, balance, asked)
    ready = {view.id for view in views if view.routable}
    assert (verdict.replica is None) == (not ready) and verdict.why
    if ready:
        assert verdict.replica in ((ready - avoid) or ready)


@given(st.integers(0, 2**32 - 1), st.integers(2, 8))
def test_a_prefix_stays_where_it_was_when_another_replica_goes(prefix: int, count: int) -> None:
    """Consistent hashing: only what was hashed to the replica that went moves."""
    views = [View(str(number)) for number in range(count)]
    asked = Asked(100, 10, prefix)
    home = choose(views, balance="prefix-hash", asked=asked).replica
    for gone in views:
        rest = [view for view in views if view is not gone]
        if gone.id != home:
            assert choose(rest, balance="prefix-hash", asked=asked).replica == home


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 500)), min_size=1, max_size=200))
def test_a_hot_prefix_overflows_at_the_bound(arrivals: list[tuple[int, int]]) -> None:
    """However few prefixes there are, no replica holds more than 1.25 times its share and one sequence."""
    views = [View(str(number)) for number in range(4)]
    largest = 0
    for prefix, size in arrivals:
        largest = max(largest, size)
        chosen = choose(views, balance="prefix-hash", asked=Asked(size, 0, prefix)).replica
        next(view for view in views if view.id == chosen).outstanding_tokens += size
        total = sum(view.outstanding_tokens for view in views)
        assert max(view.outstanding_tokens for view in views) <= 1.25 * total / 4 + 1.25 * largest


def test_a_cached_prefix_draws_and_a_queue_repels() -> None:
    """Predicted time weighs what is cached against what waits, and says both numbers."""
    asked = Asked(8000, 10, 1, lambda id: 7000 if id == "b" else 0)
    assert choose([View("a"), View("b")], balance="marginal-time", asked=asked).replica == "b"
    verdict = choose([View("a"), View("b", outstanding_prefill=20_000)], balance="marginal-time", asked=asked)
    assert verdict.replica == "a" and dict(verdict.scores)["b"] > dict(verdict.scores)["a"]
    assert "0 of 8000 tokens cached" in verdict.why


def test_where_nothing_is_cached_fewest_tokens_win() -> None:
    """Rates that were learned a little differently do not outweigh what is known exactly."""
    slower = Rates(prefill_tokens_per_s=1000.0)
    views = [
        View("a", outstanding_tokens=900),
        View("b", outstanding_tokens=800, outstanding_prefill=800, rates=slower),
    ]
    verdict = choose(views, balance="marginal-time", asked=Asked(500, 10, 1))
    assert verdict.replica == "b" and "nothing of it is cached anywhere" in verdict.why
    assert dict(verdict.scores)["b"] > dict(verdict.scores)["a"]
    warm = Asked(500, 10, 1, lambda id: 100)
    assert choose(views, balance="marginal-time", asked=warm).replica == "a"


@given(st.integers(0, 100_000), st.integers(0, 500), st.floats(0, 0.98), st.integers(0, 10_000))
def test_more_of_anything_costs_more(queued: int, decoding: int, use: float, prompt: int) -> None:
    """Predicted time grows with the queue, the batch, the memory in use and the prompt, and is finite."""
    asked = Asked(prompt, 100)
    here = marginal_s(View("a", outstanding_prefill=queued, decoding=decoding, kv_use=use), asked)
    assert 0 <= here < float("inf")
    for more in (
        View("a", outstanding_prefill=queued + 1000, decoding=decoding, kv_use=use),
        View("a", outstanding_prefill=queued, decoding=decoding + 1, kv_use=use),
        View("a", outstanding_prefill=queued, decoding=decoding, kv_use=use + 0.01),
    ):
        assert marginal_s(more, asked) > here


def test_a_prediction_never_piles_up() -> None:
    """One replica with everything cached gets no more than one and a half times its share of what is outstanding."""
    views = [View(str(number)) for number in range(4)]
    asked = Asked(1000, 100, 1, lambda id: 1000 if id == "0" else 0)
    for _ in range(100):
        chosen = choose(views, balance="marginal-time", asked=asked).replica
        next(view for view in views if view.id == chosen).outstanding_tokens += 1100
    total = sum(view.outstanding_tokens for view in views)
    assert views[0].outstanding_tokens <= 1.5 * total / 4 + 1.5 * 1100
