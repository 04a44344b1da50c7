"""What is learned of steps' times: for prediction all that lies between two tokens, for rounds the computing alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.cost.time import StepTime
from penstock.engine.kv_cache import BlockPool
from penstock.engine.loop import Loop
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import Sequence
from penstock.policy.batch import BatchRules
from penstock.policy.step_time import StepShape
from penstock.sim.clock import VirtualClock
from penstock.sim.executor import SimulatedExecutor
from penstock.sim.replay import Recorder
from penstock.wire.engine import Sampling

CLOCK = VirtualClock()
EXECUTOR = SimulatedExecutor(CLOCK, StepTime(1e-3, 0, 0))


@pytest.mark.parametrize("between_s", [0.0, 0.3e-3])
def test_steps_are_several_in_a_call_whatever_lies_between_calls(between_s: float) -> None:
    """Steps of 1.9 ms are two in a call.  With 0.3 ms between calls a lone one takes 2.2, of which one fits into 4."""
    scheduler = Scheduler(BatchRules(max_step_tokens=64, max_num_seqs=8, block_tokens=16), BlockPool(64))
    loop = Loop(scheduler, lambda event: None)
    loop.submit(Sequence("a", [1] * 6, 6, 200, Sampling(seed=1), Recorder(CLOCK, CLOCK.now())))
    rounds = []
    for _ in range(60):
        plan = loop.plan()
        assert plan is not None
        result = EXECUTOR.execute(plan)
        seconds = 1.9e-3 * result.num_rounds + between_s
        loop.commit(plan, replace(result, seconds=seconds, between_s=between_s))
        rounds.append(plan.rounds)
    assert set(rounds[-30:]) == {2}
    each_s = 1.9e-3 + between_s / 2
    assert scheduler.step_model.seconds(StepShape(1, 100)) == pytest.approx(each_s, rel=0.05)
