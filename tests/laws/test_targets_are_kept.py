"""Laws of the step-time model and the budget that follows from it, against synthetic machines in virtual time."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from penstock.cost.time import StepTime
from penstock.engine.loop import Loop
from penstock.events.list import StepDone
from penstock.policy.batch import BatchRules
from penstock.policy.pace import LEAST_CHUNK, Pace
from penstock.policy.step_time import StepModel, StepShape, learn
from penstock.sim.replay import Recorder, Replay, TracedRequest, replay

RULES = BatchRules(max_step_tokens=512, max_num_seqs=64, block_tokens=32)
FAST, SLOW = StepTime(2e-3, 5e-5, 1e-8), StepTime(20e-3, 1e-3, 5e-7)


def gaps(recorders: list[Recorder]) -> list[float]:
    """Seconds between two tokens of a stream, over all of them, in rising order."""
    return sorted(b - a for one in recorders for a, b in pairwise(one.token_s))


def traffic(dice: random.Random, target_s: float | None) -> list[TracedRequest]:
    """Streams all the time, and long prompts that come between their tokens."""
    chats = [
        TracedRequest(0.05 * i, [dice.randrange(999) for _ in range(30)], 150, itl_target_s=target_s) for i in range(40)
    ]
    return chats + [
        TracedRequest(0.5 + 0.9 * i, [dice.randrange(999) for _ in range(2500)], 5, itl_target_s=target_s)
        for i in range(12)
    ]


def run(step_time: StepTime, target_s: float | None) -> Replay:
    return replay(traffic(random.Random(3), target_s), rules=RULES, num_blocks=4000, step_time=step_time)


@pytest.mark.parametrize(("machine", "target_s"), [(FAST, 0.010), (SLOW, 0.100)])
def test_streams_keep_their_target_beside_long_prompts(machine: StepTime, target_s: float) -> None:
    """On a fast machine and on a slow one, of which nothing is known at first; and without a target they do not."""
    kept, free = gaps(run(machine, target_s).requests), gaps(run(machine, None).requests)

    assert free[int(0.99 * len(free))] > 1.5 * target_s, "no target was in danger"
    assert kept[int(0.99 * len(kept))] <= target_s
    assert kept[-1] <= 1.5 * target_s


def test_a_target_costs_prompts_no_more_than_it_has_to() -> None:
    """Steps beside streams use the time that the target leaves, and steps without streams all the tokens there are."""
    done = run(SLOW, 0.100)
    mixed = sorted(
        e.seconds for e in done.events if isinstance(e, StepDone) and e.decode_tokens and e.prefill_tokens > 40
    )
    assert len(mixed) > 100
    assert mixed[len(mixed) // 2] > 0.085
    alone = replay([TracedRequest(0.0, [1] * 4000, 2, itl_target_s=0.001)], rules=RULES, num_blocks=400, step_time=SLOW)
    assert [e.prefill_tokens for e in alone.events if isinstance(e, StepDone)][:7] == [512] * 7


def test_a_target_out_of_reach_does_not_bound_how_many_run() -> None:
    """With a target below the time of an empty step, every request ends, and they run side by side."""
    most = []
    done = replay(
        [TracedRequest(0.1 * i, [i] * 100, 40, itl_target_s=1e-4) for i in range(20)],
        rules=RULES,
        num_blocks=400,
        step_time=SLOW,
        after_step=lambda loop: most.append(len(loop.scheduler.running)),
    )
    assert [one.reason for one in done.requests] == ["length"] * 20
    assert max(most) >= 3


def test_prompts_get_the_least_chunk_where_streams_take_all_the_time() -> None:
    """However little time is left, a step has a few prompt tokens, and not a few for each prompt."""
    model = observed(random.Random(9), MACHINES[0], StepModel(), 200, noise=0.01)
    pace = Pace(model, StepShape(60, 60_000), 0.05)
    assert pace.tokens_from(0) == pace.tokens_from(5000) == LEAST_CHUNK
    pace.take(0, 5)
    assert pace.tokens_from(0) == LEAST_CHUNK - 5
    pace.take(0, LEAST_CHUNK - 5)
    assert pace.tokens_from(0) == 0


def test_as_many_run_as_keep_the_target() -> None:
    """Where every stream makes a step longer, no more are admitted than the target allows, and no fewer."""
    machine = StepTime(5e-3, 2e-3, 0.0)
    most = []

    def look(loop: Loop) -> None:
        most.append(len(loop.scheduler.running))

    trace = [TracedRequest(0.1 * i, [i] * 20, 100, itl_target_s=0.05) for i in range(60)]
    done = replay(trace, rules=RULES, num_blocks=4000, step_time=machine, after_step=look)

    assert 12 <= max(most) <= 15
    assert gaps(done.requests)[int(0.99 * len(gaps(done.requests)))] <= 0.05


def test_a_class_without_a_target_makes_no_demand() -> None:
    """Streams that have no target are not slowed down by the budget that one would need."""
    trace = [TracedRequest(0.0, [i] * 40, 60) for i in range(10)] + [TracedRequest(0.5, [99] * 3000, 2)]
    done = replay(trace, rules=RULES, num_blocks=400, step_time=SLOW)
    assert {e.token_budget for e in done.events if isinstance(e, StepDone)} == {512}


SHAPES = (
    (8, 4000, 0, 0),
    (32, 40_000, 0, 0),
    (0, 0, 512, 1000),
    (16, 9000, 200, 3000),
    (1, 700, 0, 0),
    (4, 900, 64, 0),
)


def observed(dice: random.Random, machine: tuple[float, ...], model: StepModel, count: int, noise: float) -> StepModel:
    for _ in range(count):
        decodes, context, prefill, start = dice.choice(SHAPES)
        shape = StepShape(decodes, int(context * dice.uniform(0.5, 1.5)))
        if prefill:
            shape = shape.and_prefill(int(start * dice.uniform(0.5, 1.5)), int(prefill * dice.uniform(0.2, 1.0)))
        stall = 20.0 if dice.random() < 0.02 else 1.0
        model = learn(model, shape, true_seconds(machine, shape) * dice.gauss(1.0, noise) * stall)
    return model


def true_seconds(machine: tuple[float, ...], shape: StepShape) -> float:
    base, row, context, token, pair = machine
    parts = base, row * shape.num_decodes, context * shape.context_tokens, token * shape.prefill_tokens
    return sum(parts) + pair * shape.prefill_pairs


MACHINES = ((0.02, 8e-4, 2e-6, 1e-3, 5e-7), (0.004, 1e-5, 1e-8, 2e-6, 1e-9), (0.5, 0.02, 5e-5, 0.03, 1e-5))


@pytest.mark.parametrize("machine", MACHINES)
def test_the_model_learns_a_machine_from_its_steps(machine: tuple[float, ...]) -> None:
    """Within 250 noisy steps, one in fifty of which stalls, any shape is predicted to a tenth or better."""
    model = observed(random.Random(5), machine, StepModel(), 250, noise=0.03)
    for decodes, context, prefill, start in SHAPES:
        shape = StepShape(decodes, context).and_prefill(start, prefill)
        assert model.seconds(shape) == pytest.approx(true_seconds(machine, shape), rel=0.1)


def test_the_model_follows_a_machine_that_slows_down() -> None:
    """When everything takes twice as long, as on a hot CPU, 200 steps later the predictions do, too."""
    dice, machine = random.Random(6), MACHINES[0]
    model = observed(dice, machine, StepModel(), 300, noise=0.03)
    slower = tuple(2 * rate for rate in machine)
    model = observed(dice, slower, model, 200, noise=0.03)
    shape = StepShape(16, 9000).and_prefill(3000, 100)
    assert model.seconds(shape) == pytest.approx(true_seconds(slower, shape), rel=0.15)


def test_what_is_no_longer_seen_is_not_forgotten() -> None:
    """After 20,000 steps that only decode, what a prompt's tokens cost is still known, and nothing has blown up."""
    dice, machine = random.Random(7), MACHINES[0]
    model = observed(dice, machine, StepModel(), 300, noise=0.03)
    for _ in range(20_000):
        shape = StepShape(8, 8000)
        model = learn(model, shape, true_seconds(machine, shape) * dice.gauss(1.0, 0.03))
    shape = StepShape(8, 8000).and_prefill(1000, 300)
    assert model.seconds(shape) == pytest.approx(true_seconds(machine, shape), rel=0.1)


def test_rates_that_are_always_seen_together_do_not_drift_apart() -> None:
    """Where every step takes the same, with decodes in the place of prefill: predictions stay what they are."""
    model = StepModel()
    for number in range(400):
        decodes = min(8 * number, 512)
        shape = StepShape(decodes, 65 * decodes)
        for _ in range((512 - decodes) // 64):
            shape = shape.and_prefill(0, 64)
        model = learn(model, shape, 0.01)
        if number > 20:
            assert model.seconds(shape) == pytest.approx(0.01, rel=0.3)
    assert model.seconds(StepShape(39, 2500)) == pytest.approx(0.01, rel=0.3)


def test_the_room_for_prefill_is_the_inverse_of_the_prediction() -> None:
    """The most tokens within a time take no longer than that, and one more would."""
    model = observed(random.Random(8), MACHINES[0], StepModel(), 300, noise=0.01)
    for start in (0, 500, 20_000):
        for seconds in (0.01, 0.1, 1.0):
            most = model.prefill_within(seconds, start)
            assert model.seconds_of_prefill(start, most) <= seconds < model.seconds_of_prefill(start, most + 1)
    assert model.prefill_within(-1.0, 0) == 0


def test_nothing_is_known_at_first_and_little_is_dared() -> None:
    """Before the first step a chunk beside streams is the least one; then at most twice the largest one seen."""
    model = StepModel()
    assert Pace(model, StepShape(4, 400), 0.05).most_tokens == LEAST_CHUNK
    model = learn(model, StepShape(0, 0).and_prefill(0, 40), 0.04)
    assert Pace(model, StepShape(4, 400), 0.05).most_tokens == 80
