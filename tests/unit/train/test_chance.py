from __future__ import annotations

from collections import Counter

from penstock.train.chance import draw, happens, pick, shuffled


def test_a_draw_never_changes() -> None:
    """The numbers are part of what a recipe means: these must be the same for ever."""
    assert draw(1, "a", 2) == 15620920160155596453
    assert shuffled("abcdef", 7, "order") == list("bcaedf")


def test_keys_are_not_mixed_up() -> None:
    """Each part of a key counts, in its place."""
    assert len({draw(1, "ab"), draw(1, "a", "b"), draw(1, "b", "a"), draw(2, "ab"), draw(1, "ab", 0)}) == 5


def test_draws_are_even() -> None:
    """Of ten items each comes up about a tenth of the time, and what happens with 5 % does so about as often."""
    counts = Counter(pick(range(10), 1, "even", n) for n in range(10_000))
    assert len(counts) == 10 and all(850 < count < 1150 for count in counts.values())
    assert 400 < sum(happens(0.05, 1, "rare", n) for n in range(10_000)) < 600


def test_an_order_loses_nothing() -> None:
    """A shuffled list has the same items, and another key another order."""
    items = list(range(100))
    assert sorted(shuffled(items, 1)) == items != shuffled(items, 1) != shuffled(items, 1, "other")
