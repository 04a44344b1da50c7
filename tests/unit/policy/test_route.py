"""Routing decides by what is outstanding."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.policy.route import choose


@dataclass
class View:
    id: str
    routable: bool = True
    outstanding_tokens: int = 0
    outstanding_requests: int = 0
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
