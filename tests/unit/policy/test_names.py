"""What a name stands for follows from the names, the rights and the caller alone."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.config.names import Name, Shadow
from penstock.policy.names import Caller, check, reachable, resolve, side

MODELS = ("large", "next", "small")
ANYBODY = Caller(tenant="t", user="u")


def everything(model: str) -> bool:
    return model in MODELS


def chain(asked: str, names: dict[str, Name], caller: Caller = ANYBODY) -> tuple[str, ...]:
    return resolve(asked, names, everything, caller).chain


def test_an_alias_leads_on_until_a_model() -> None:
    """A name may lead to a name; fallbacks of both follow in order, each model once."""
    names = {
        "gpt-4o": Name(to="assistant", fallbacks=("small", "large")),
        "assistant": Name(to="large", fallbacks=("next",)),
    }
    verdict = resolve("gpt-4o", names, everything, ANYBODY)
    assert verdict.chain == ("large", "next", "small")
    assert verdict.why == "gpt-4o is assistant; assistant is large; then next, small"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"a": Name(to="nowhere")}, "neither a model nor a name"),
        ({"a": Name(to="large", fallbacks=("nowhere",))}, "the fallback 'nowhere'"),
        ({"a": Name(to="large", shadow=Shadow(model="nowhere"))}, "the shadow 'nowhere'"),
        ({"a": Name(to="b"), "b": Name(to="large", fallbacks=("a",))}, "a -> b -> a"),
        ({"a": Name(to="a")}, "a -> a"),
        ({"a": Name(to={"large": 0, "small": 0})}, "sum up to 0"),
        ({"a": Name(to={})}, "leads to 0 models"),
        ({"a": Name(to={"large": -1.0, "small": 2.0})}, "weight -1"),
        ({"a": Name(to={"large": math.nan})}, "weight nan"),
        ({"a": Name(to={"large": 1e308, "small": 1e308})}, "sum up to inf"),
        ({"large": Name(to="small")}, "a model's already"),
        ({"bad name\r\n": Name(to="small")}, "is no name"),
        ({"": Name(to="small")}, "is no name"),
        ({"a": Name(to="large", fallbacks=("small", "small"))}, "same fallback twice"),
        ({f"n{i}": Name(to=f"n{i + 1}") for i in range(2000)} | {"n2000": Name(to="large")}, "2001 names"),
        ({f"n{i}": Name(to=f"n{i + 1}") for i in range(900)} | {"n900": Name(to="large")}, "more than 4 names"),
    ],
)
def test_what_does_not_hold_together_is_told(names: dict[str, Name], words: str) -> None:
    """Cycles, unknown targets, weights without a sum and names of models are refused, each in its own words."""
    with pytest.raises(ValueError, match=re.escape(words)):
        check(names, MODELS)


def test_good_names_pass() -> None:
    """A split whose new side has no weight yet, an alias of it, and a copy are all in order."""
    check(
        {
            "assistant": Name(to={"large": 1, "next": 0}, fallbacks=("small",), shadow=Shadow(model="next")),
            "gpt-4o": Name(to="assistant"),
        },
        MODELS,
    )


WEIGHTS = st.dictionaries(st.sampled_from("abcd"), st.floats(0, 100).map(lambda x: round(x, 2)), min_size=2).filter(
    lambda weights: any(weights.values())
)


@given(st.binary(max_size=20), WEIGHTS)
def test_a_side_is_one_with_weight_and_always_the_same(key: bytes, weights: dict[str, float]) -> None:
    """The same key falls on the same side, in whatever order the weights stand, and never where there is no weight."""
    chosen = side(key, weights)
    assert weights[chosen] > 0
    assert side(key, dict(reversed(weights.items()))) == chosen


@given(st.binary(max_size=20), WEIGHTS, WEIGHTS)
def test_nobody_moves_to_a_side_that_did_not_grow(key: bytes, old: dict[str, float], new: dict[str, float]) -> None:
    """Whoever moves, moves to a side whose weight grew beside that of the one it left."""
    before, after = side(key, old), side(key, new)
    if before != after:
        assert new[after] * old[before] > old.get(after, 0.0) * new.get(before, 0.0)


def test_shares_are_those_of_the_weights_and_a_change_moves_just_the_difference() -> None:
    """Of 20,000 users 10 % are on the new side; at 30 %, those 10 % are still there and 20 % have come."""
    keys = [f"user {number}".encode() for number in range(20_000)]
    at_10 = {key for key in keys if side(key, {"large": 90, "next": 10}) == "next"}
    at_30 = {key for key in keys if side(key, {"large": 70, "next": 30}) == "next"}
    assert at_10 < at_30
    assert len(at_10) / len(keys) == pytest.approx(0.1, abs=0.01)
    assert len(at_30) / len(keys) == pytest.approx(0.3, abs=0.01)


def test_what_a_split_sticks_to() -> None:
    """A session before a user before a key before the conversation's beginning; each tenant by itself."""
    names = {"a": Name(to={"large": 1, "small": 1}), "each": Name(to={"large": 1, "small": 1}, sticky="conversation")}

    def by(name: str, **given: object) -> str:
        return resolve(name, names, everything, Caller(tenant="t", conversation=lambda: b"hi", **given)).why  # type: ignore[arg-type]

    assert "by its session" in by("a", session="s", user="u", key_id="k")
    assert "by its user" in by("a", user="u", key_id="k")
    assert "by its key" in by("a", key_id="k")
    assert "by its conversation" in by("a")
    assert "by its conversation" in by("each", user="u", key_id="k")
    assert "which has 1 of 2" in by("a")
    callers = [Caller(tenant=f"t{number}", user="u") for number in range(64)]
    assert len({chain("a", names, caller) for caller in callers}) == 2


@given(st.sets(st.sampled_from(MODELS)), st.text(max_size=5))
def test_a_chain_has_only_what_the_caller_may_use(mine: set[str], user: str) -> None:
    """No right to a model, no place in the chain, neither by a split nor as a fallback; without any there is none."""
    names = {"a": Name(to={"large": 1, "next": 5}, fallbacks=("small", "large")), "b": Name(to="a")}
    caller = Caller(tenant="t", user=user)
    verdict = resolve("b", names, mine.__contains__, caller)
    assert set(verdict.chain) <= mine and bool(verdict.chain) == bool(mine) == reachable("b", names, mine.__contains__)
