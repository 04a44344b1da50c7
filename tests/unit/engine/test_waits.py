"""What a sequence waited for is told with it: places, blocks, turns of others, and how often it gave way."""

from __future__ import annotations

import pytest

from penstock.cost.time import StepTime
from penstock.engine.kv_cache import BlockPool
from penstock.engine.loop import Loop
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import Sequence
from penstock.policy.batch import BatchRules
from penstock.sim.clock import VirtualClock
from penstock.sim.executor import SimulatedExecutor
from penstock.sim.replay import Recorder
from penstock.wire.engine import Sampling

CLOCK = VirtualClock()
EXECUTOR = SimulatedExecutor(CLOCK, StepTime(1.0, 0.0, 0.0))


def engine(num_blocks: int, max_num_seqs: int) -> Loop:
    rules = BatchRules(max_step_tokens=64, max_num_seqs=max_num_seqs, block_tokens=4)
    return Loop(Scheduler(rules, BlockPool(num_blocks), prefix_caching=False), lambda event: None)


def submit(loop: Loop, prompt: int, output: int, **who: object) -> Sequence:
    name = f"s{len(loop)}"
    sink = Recorder(CLOCK, CLOCK.now())
    sequence = Sequence(name, [1] * prompt, prompt, output, Sampling(seed=0), sink, **who)  # type: ignore[arg-type]
    loop.submit(sequence)
    return sequence


def run(loop: Loop) -> None:
    while (plan := loop.plan()) is not None:
        loop.commit(plan, EXECUTOR.execute(plan))


def test_whoever_need_not_wait_waits_for_nothing() -> None:
    """A sequence that is admitted at once has nothing to tell."""
    loop = engine(20, 4)
    sequence = submit(loop, 8, 3)
    run(loop)
    assert (sequence.waits.queued_s, sequence.waits.held, sequence.waits.preemptions) == (0.0, {}, 0)


def test_the_wait_for_a_place_is_told_in_seconds_of_steps() -> None:
    """One runs at a time: the second waits the first one's five steps, the third both."""
    loop = engine(20, 1)
    _, second, third = (submit(loop, 8, 5) for _ in range(3))
    run(loop)
    assert second.waits.queued_s == second.waits.held["sequences"] == 5.0
    assert third.waits.queued_s == third.waits.held["sequences"] == 10.0


def test_the_wait_for_blocks_is_told_apart() -> None:
    """Places there are, but no blocks: that is what is named."""
    loop = engine(5, 4)
    _, second = submit(loop, 12, 4), submit(loop, 12, 4)
    run(loop)
    assert second.waits.held == {"blocks": pytest.approx(second.waits.queued_s)} and second.waits.queued_s >= 4.0


def test_a_sequence_that_gave_way_says_so() -> None:
    """Its blocks went to a tenant that held less; it waited again, and ended all the same."""
    loop = engine(8, 4)
    large = submit(loop, 24, 6, tenant="flood")
    plan = loop.plan()
    assert plan is not None
    loop.commit(plan, EXECUTOR.execute(plan))
    small = submit(loop, 8, 2, tenant="quiet")
    run(loop)
    assert small.waits.queued_s == 0.0
    assert large.waits.preemptions == 1 and large.waits.queued_s > 0
    assert large.num_output_tokens == 6
