"""Rates of a replica are learned from what its sequences took."""

from __future__ import annotations

import random

from penstock.policy.rates import Rates, after_first_token, after_stream


def test_prefill_is_learned_through_noise() -> None:
    """From a wrong beginning, and with times that stray by a half, the belief comes within a fifth."""
    dice, rates = random.Random(1), Rates(prefill_tokens_per_s=500.0)
    for _ in range(200):
        work = dice.randrange(100, 8000)
        rates = after_first_token(rates, work, work / 16_000 * dice.uniform(0.7, 1.5))
    assert 0.8 * 16_000 < rates.prefill_tokens_per_s < 1.3 * 16_000


def test_a_step_and_its_growth_are_learned_apart() -> None:
    """Streams beside few and beside many rows tell the constant from the slope."""
    dice, rates = random.Random(2), Rates(step_s=0.1, growth_s=0.01)
    for _ in range(400):
        rows = dice.randrange(0, 64)
        rates = after_stream(rates, rows, (0.012 + 0.00025 * rows) * dice.uniform(0.9, 1.1))
    assert 0.010 < rates.step_s < 0.014
    assert 0.0002 < rates.growth_s < 0.0003


def test_one_stall_does_not_turn_the_picture_over() -> None:
    """A single hour-long prefill or pace moves a belief by a tenth of a factor of four, no more."""
    rates = Rates()
    assert after_first_token(rates, 100, 3600.0).prefill_tokens_per_s > 0.9 * rates.prefill_tokens_per_s
    learned = rates
    for _ in range(50):
        learned = after_stream(learned, 8, 0.02 + 8 * 0.0005)
    assert after_stream(learned, 8, 3600.0).step_s < 1.2 * learned.step_s


def test_what_says_nothing_changes_nothing() -> None:
    """A prompt that was wholly cached, or a clock that stood still."""
    assert after_first_token(Rates(), 0, 1.0) == after_first_token(Rates(), 10, 0.0) == Rates()
