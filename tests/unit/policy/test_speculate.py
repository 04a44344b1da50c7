"""How much is guessed: by what it brings, what it costs, and what guessing has lost so far."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from penstock.policy.speculate import (
    Acceptance,
    Allowance,
    Offer,
    chance,
    drafted,
    grants,
    rested,
    rows_to_catch_up,
    settled,
)
from penstock.policy.step_time import StepModel, StepShape

PLENTY = Allowance(1.0, 2.0)


def machine(step_s: float, row_s: float) -> StepModel:
    """Steps of so many seconds, and so many more for each row."""
    return StepModel(rates=(step_s, row_s, 0.0, 0.0, 0.0), num_steps=100)


def lone(chance: float, model: StepModel, allowance: Allowance = PLENTY, length: int = 8, most_rows: int = 99) -> int:
    return grants([Offer(chance, length)], StepShape(1, 0), model, allowance, most_rows)[0]


def tokens_per_s(counts: list[int], offers: list[Offer], num_decodes: int, model: StepModel) -> float:
    tokens = num_decodes + sum(
        offer.chance**depth for offer, count in zip(offers, counts, strict=True) for depth in range(1, count + 1)
    )
    return tokens / (model.seconds(StepShape(num_decodes, 0)) + model.rates[1] * sum(counts))


def test_more_is_guessed_the_likelier_it_is_right_and_the_cheaper_a_row_is() -> None:
    """Where rows are as good as free everything is tried; where they cost as much as a step only what is sure."""
    assert [lone(c, machine(1.0, 1e-6)) for c in (0.9, 0.3)] == [8, 8]
    assert [lone(c, machine(1.0, 0.2)) for c in (0.95, 0.7, 0.4, 0.1)] == [8, 3, 1, 0]
    assert [lone(c, machine(0.0, 1.0)) for c in (0.95, 0.7)] == [0, 0]


def test_what_is_granted_is_the_most_tokens_per_second_that_there_are() -> None:
    """Against every other way to share rows among a few sequences, up to the margin that a row has to bring more."""
    dice = random.Random(3)
    for _ in range(200):
        model = machine(1.0, dice.uniform(0.01, 0.5))
        offers = [Offer(dice.random(), dice.randint(1, 3)) for _ in range(3)]
        num_decodes = dice.randint(3, 6)
        granted = grants(offers, StepShape(num_decodes, 0), model, PLENTY, 99)
        assert all(count <= offer.length for count, offer in zip(granted, offers, strict=True))
        ways = [[a, b, c] for a in range(4) for b in range(4) for c in range(4)]
        best = max(
            tokens_per_s(way, offers, num_decodes, model)
            for way in ways
            if all(count <= offer.length for count, offer in zip(way, offers, strict=True))
        )
        got = tokens_per_s(granted, offers, num_decodes, model)
        assert got >= tokens_per_s([0, 0, 0], offers, num_decodes, model)
        assert got >= best * 0.97


def test_rows_go_where_they_are_likeliest_to_bring_a_token() -> None:
    """Of two sequences the one that guesses better has its second token tried before the other's first."""
    granted = grants([Offer(0.5, 8), Offer(0.9, 8)], StepShape(2, 0), machine(1.0, 0.01), PLENTY, 3)
    assert granted == [0, 3]


def test_no_more_rows_are_used_than_there_are() -> None:
    """The step's budget binds, down to none."""
    assert [lone(0.9, machine(1.0, 1e-6), most_rows=rows) for rows in (5, 1, 0, -1)] == [5, 1, 0, 0]


def test_nothing_is_guessed_while_guessing_has_lost_what_it_may_lose() -> None:
    """However likely the guesses are."""
    assert lone(1.0, machine(1.0, 1e-6), Allowance(0.0, 2.0)) == 0
    assert lone(1.0, machine(1.0, 1e-6), Allowance(-1.0, 2.0)) == 0


def test_what_is_not_worth_its_time_is_tried_when_there_is_time_to_lose() -> None:
    """Two tokens of the best offer, once the allowance is full; else nothing."""
    full = Allowance(2.0, 2.0)
    assert grants([Offer(0.1, 8), Offer(0.2, 8)], StepShape(2, 0), machine(1.0, 0.5), full, 99) == [0, 2]
    assert grants([Offer(0.1, 8), Offer(0.2, 8)], StepShape(2, 0), machine(1.0, 0.5), PLENTY, 99) == [0, 0]
    assert lone(0.1, machine(1.0, 0.5), full, length=1) == 1


@pytest.mark.parametrize("stalls", [False, True])
def test_guesses_that_are_never_right_cost_less_than_three_percent(stalls: bool) -> None:
    """Whatever is believed of them: the allowance bounds what a thousand steps lose, also when some of them stall."""
    dice = random.Random(5)
    model, allowance = machine(1.0, 0.2), Allowance()
    on = off = 0.0
    for _ in range(1000):
        stall = 30.0 if stalls and dice.random() < 0.005 else 0.0
        count = grants([Offer(0.99, 8)], StepShape(1, 0), model, allowance, 99)[0]
        plain_s = model.seconds(StepShape(1, 0))
        seconds = plain_s + 0.2 * count + stall
        on, off = on + seconds, off + plain_s + stall
        if count:
            allowance = settled(allowance, model, StepShape(1, 0), StepShape(1, 0), 0, seconds)
        else:
            allowance = rested(allowance, seconds)
    assert off < on < 1.03 * off


def test_guesses_that_are_right_are_never_stopped_by_the_allowance() -> None:
    """What they bring pays for what they cost."""
    model, allowance = machine(1.0, 0.2), rested(Allowance(), 1.2)
    for _ in range(1000):
        count = grants([Offer(0.9, 8)], StepShape(1, 0), model, allowance, 99)[0]
        assert count
        allowance = settled(allowance, model, StepShape(1, 0), StepShape(1, 0), count, 1.2 + 0.2 * count)


def test_a_chance_is_learned_from_the_sequence_and_until_then_from_others() -> None:
    """Without any experience even odds; others' experience stands in for one's own, which soon counts more."""
    assert chance(Acceptance(), Acceptance()) == 0.5
    others = Acceptance()
    for _ in range(200):
        others = others.after(8, 0, of_many=True)
    assert chance(Acceptance(), others) < 0.05
    own = Acceptance().after(8, 8).after(8, 8)
    assert chance(own, others) > 0.85


def test_what_follows_a_wrong_guess_says_nothing() -> None:
    """Of eight guesses with two right, three were tried; of two with both right, two."""
    assert Acceptance().after(8, 2) == Acceptance(3.0, 2.0)
    assert Acceptance().after(2, 2) == Acceptance(2.0, 2.0)


def test_making_a_guess_is_a_part_of_what_it_costs() -> None:
    """A draft model that takes half a step for a guess makes few, nearly sure ones; a slow one none."""
    assert [lone(0.95, machine(1.0, 0.01), replace(PLENTY, guess_s=guess_s)) for guess_s in (0, 0.5, 2)] == [8, 3, 0]


def test_a_draft_model_catches_up_where_it_pays_and_else_as_far_as_there_is_time_to_lose() -> None:
    """Many rows at once where guesses of others were right; few where not, and none while nothing may be lost."""
    good, bad = Acceptance(100.0, 90.0), Acceptance(100.0, 5.0)
    model, full = machine(1.0, 0.2), Allowance(2.0, 2.0, guess_s=0.1, row_s=0.05)
    assert rows_to_catch_up(1000, good, model, full) == 128
    assert rows_to_catch_up(20, good, model, full) == 20
    assert rows_to_catch_up(1000, bad, model, full) == 40
    assert rows_to_catch_up(1000, bad, model, replace(full, row_s=0.0)) == 16
    assert rows_to_catch_up(1000, bad, model, replace(full, seconds=1.9)) == 0
    assert rows_to_catch_up(1000, good, model, replace(full, seconds=0.0)) == 0


def test_what_drafting_takes_is_lost_where_it_brings_nothing() -> None:
    """Drafting counts in full, and what a guess takes is learned: a first slow one is soon forgotten."""
    before = rested(Allowance(), 1.0)
    after = settled(before, machine(1.0, 0.2), StepShape(1, 0), StepShape(1, 0), 0, 1.2 + 3.0, 3.0)
    assert before.seconds - after.seconds == pytest.approx(3.0, abs=0.03)
    learned = drafted(drafted(drafted(before, 4, 4, 40.0), 4, 4, 0.4), 4, 4, 0.8)
    assert learned.guess_s == pytest.approx(0.125)
    assert drafted(before, 0, 100, 5.0).row_s == 0.05
