"""Deciding a step costs little beside computing it, however many run, wait and share."""

from __future__ import annotations

import time
from statistics import median

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


@pytest.mark.parametrize(("num_tenants", "num_waiting"), [(1, 0), (32, 0), (32, 2000)])
def test_a_plan_for_256_running_sequences_takes_less_than_a_millisecond(num_tenants: int, num_waiting: int) -> None:
    """In processor time, the median of many steps: alone, shared by tenants, and with thousands waiting."""
    clock = VirtualClock()
    executor = SimulatedExecutor(clock, StepTime(0.01, 0.0, 0.0))
    scheduler = Scheduler(BatchRules(max_step_tokens=512, max_num_seqs=256, block_tokens=32), BlockPool(40_000))
    loop = Loop(scheduler, lambda event: None)
    for i in range(256 + num_waiting):
        prompt = [i % 50] * 64
        loop.submit(
            Sequence(
                id=str(i),
                token_ids=prompt,
                num_prompt_tokens=len(prompt),
                max_tokens=200,
                sampling=Sampling(seed=i),
                sink=Recorder(clock, 0.0),
                tenant=f"t{i % num_tenants}",
                itl_target_s=0.5,
            )
        )
    seconds = []
    for _ in range(120):
        begin = time.process_time()
        plan = loop.plan()
        spent = time.process_time() - begin
        assert plan is not None
        if plan.num_decodes == 256:
            seconds.append(spent)
        loop.commit(plan, executor.execute(plan))

    assert len(seconds) > 50
    print(f"{num_tenants} tenants, {num_waiting} waiting: {median(seconds) * 1000:.3f} ms for a plan")
    assert median(seconds) < 1e-3
