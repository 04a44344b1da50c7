"""How many decode steps are one call: few enough that nobody notices."""

from __future__ import annotations

import pytest

from penstock.policy.rounds import MOST_ROUNDS, rounds_of, rounds_within
from penstock.policy.step_time import StepModel, StepShape, learn


def model(step_s: float, num_steps: int = 200) -> StepModel:
    learned = StepModel()
    for _ in range(num_steps):
        learned = learn(learned, StepShape(1, 100), step_s)
    return learned


@pytest.mark.parametrize(("step_s", "least", "most"), [(1e-4, 8, 8), (5e-4, 6, 8), (1e-3, 3, 4), (2.5e-3, 1, 1)])
def test_rounds_take_a_few_milliseconds_at_most(step_s: float, least: int, most: int) -> None:
    """As many as fit into four, and never more than a handful."""
    assert least <= rounds_within(model(step_s), StepShape(1, 100), None) <= most <= MOST_ROUNDS


def test_a_target_between_tokens_bounds_them() -> None:
    """Half of it is left to everything else."""
    assert rounds_within(model(1e-4), StepShape(1, 100), 0.0005) <= 2


def test_a_machine_that_nobody_has_measured_computes_one_step_at_a_time() -> None:
    """What is not known to be short may be long."""
    assert rounds_within(StepModel(), StepShape(1, 100), None) == 1
    assert rounds_within(model(1e-4, num_steps=2), StepShape(1, 100), None) == 1


def test_nobody_goes_beyond_the_room_of_the_first_to_end() -> None:
    """Its last token, or the last place in its blocks."""
    assert rounds_of(8, [9, 3, 7]) == 3
    assert rounds_of(8, [0, 5]) == 1
