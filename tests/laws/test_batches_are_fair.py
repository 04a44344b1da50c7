"""Laws of sharing an engine: a flood of one tenant, weights, and classes that never starve, in virtual time."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.cost.time import StepTime
from penstock.engine.loop import Loop
from penstock.policy.batch import BatchRules
from penstock.policy.fair import Account, FairRules
from penstock.sim.replay import Recorder, TracedRequest, replay

STEP_TIME = StepTime(base_s=5e-3, per_token_s=2e-4, per_kv_token_s=2e-8)
RULES = BatchRules(max_step_tokens=512, max_num_seqs=64, block_tokens=32)


def quiet_trace(dice: random.Random) -> list[TracedRequest]:
    """A request every few seconds, of one to three steps of prompt."""
    return [
        TracedRequest(2.0 + 3.0 * i, [dice.randrange(1000) for _ in range(dice.randint(600, 1500))], 20, tenant="quiet")
        for i in range(8)
    ]


def flood_trace(dice: random.Random, longest: int) -> list[TracedRequest]:
    """Three hundred requests at once: minutes of work, many times what the KV cache holds."""
    return [
        TracedRequest(
            i / 1000,
            [dice.randrange(1000) for _ in range(dice.randint(20, longest))],
            dice.randint(20, 300),
            tenant="flood",
        )
        for i in range(300)
    ]


def first_token_s(requests: list[Recorder]) -> list[float]:
    times = []
    for recorder in requests:
        assert recorder.first_token_s is not None
        times.append(recorder.first_token_s - recorder.arrival_s)
    return times


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("longest", [400, 3000])
@pytest.mark.parametrize("num_blocks", [120, 1000])
def test_a_flood_leaves_anothers_first_token_within_twice_its_lone_time(
    seed: int, longest: int, num_blocks: int
) -> None:
    """With short floods and long ones, with little KV memory and with plenty: every single request of the other."""
    dice = random.Random(seed)
    quiet, flood = quiet_trace(dice), flood_trace(dice, longest)
    lone = [
        first_token_s(replay([one], rules=RULES, num_blocks=num_blocks, step_time=STEP_TIME).requests)[0]
        for one in quiet
    ]

    crowded = replay(quiet + flood, rules=RULES, num_blocks=num_blocks, step_time=STEP_TIME)

    beside = first_token_s(crowded.requests[: len(quiet)])
    assert crowded.seconds > 25.0, "no flood at all"
    assert max(b / a for a, b in zip(lone, beside, strict=True)) <= 2.0
    assert all(recorder.reason == "length" for recorder in crowded.requests)


def test_without_tenants_the_flood_is_felt() -> None:
    """The same traffic under one name: the quiet requests wait behind the flood, so the law above can fail."""
    dice = random.Random(0)
    mixed = [replace(one, tenant="") for one in quiet_trace(dice) + flood_trace(dice, 400)]

    crowded = replay(mixed, rules=RULES, num_blocks=1000, step_time=STEP_TIME)

    assert max(first_token_s(crowded.requests[:8])) > 5.0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1.0, 2.0, 5.0]), st.integers(40, 300))
def test_backlogged_tenants_share_by_weight(seed: int, weight: float, num_blocks: int) -> None:
    """While both wait, what two tenants are given per weight differs by what may be under way, whatever the sizes."""
    dice = random.Random(seed)
    trace = [
        TracedRequest(0.0, [dice.randrange(9) for _ in range(dice.randint(1, 300))], dice.randint(1, 60), tenant, share)
        for tenant, share in (("a", 1.0), ("b", weight))
        for _ in range(60)
    ]
    dice.shuffle(trace)
    rules = BatchRules(max_step_tokens=128, max_num_seqs=16, block_tokens=16, fair=FairRules(credit=0.0))
    gaps = []

    def look(loop: Loop) -> None:
        scheduler = loop.scheduler
        if {line.tenant for line in scheduler.lines} == {"a", "b"}:
            account = Account(scheduler.counters, rules.fair)
            gaps.append(abs(account["a"] - account["b"]))

    replay(trace, rules=rules, num_blocks=num_blocks, step_time=STEP_TIME, prefix_caching=False, after_step=look)

    assert len(gaps) > 10
    # What is under way at most: sixteen sequences of the longest prompt and the longest output.
    assert max(gaps) <= 16 * (300 + 2 * 60)


def test_the_lowest_class_is_served_while_better_ones_never_cease() -> None:
    """A stream of a better class that fills the engine delays a lower one by its ageing, and not for ever."""
    low = TracedRequest(1.0, [1] * 200, 10, priority=3)
    stream = [TracedRequest(i * 0.1, [2 + i % 7] * 300, 60) for i in range(1200)]
    rules = replace(RULES, max_num_seqs=8, fair=FairRules(ageing_s=5.0))

    served = replay([low, *stream], rules=rules, num_blocks=80, step_time=STEP_TIME, prefix_caching=False)

    low_waited = first_token_s(served.requests[:1])[0]
    assert served.requests[0].ended_s is not None and served.seconds > 100.0
    assert 12.0 <= low_waited <= 60.0 and served.requests[0].ended_s < 0.7 * served.seconds


def test_a_better_class_waits_for_nobody_of_a_worse_one() -> None:
    """With every place and block taken by a worse class, a request of a better one has its first token at once."""
    low = [TracedRequest(0.0, [i] * 300, 200, priority=1) for i in range(100)]
    urgent = TracedRequest(3.0, [200] * 400, 10, priority=-1)
    lone = first_token_s(replay([urgent], rules=RULES, num_blocks=100, step_time=STEP_TIME).requests)[0]

    served = replay([urgent, *low], rules=RULES, num_blocks=100, step_time=STEP_TIME)

    assert first_token_s(served.requests[:1])[0] <= 2.5 * lone
