"""A timed batch without a server, on the simulated executor."""

from __future__ import annotations

import pytest

from penstock.cost.time import StepTime
from penstock.engine.kv_cache import BlockPool
from penstock.engine.loop import Loop
from penstock.engine.offline import run_offline
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import StepPlan, StepResult
from penstock.policy.batch import BatchRules
from penstock.sim.clock import VirtualClock
from penstock.sim.executor import SimulatedExecutor
from penstock.wire.errors import Problem


def _loop(num_blocks: int = 64) -> Loop:
    rules = BatchRules(max_step_tokens=64, max_num_seqs=8, block_tokens=16)
    return Loop(Scheduler(rules, BlockPool(num_blocks), prefix_caching=False), lambda event: None)


def test_every_requested_token_is_made_and_timed() -> None:
    """Output lengths are exact, and the steps' virtual times add up to the run's."""
    clock = VirtualClock()
    executor = SimulatedExecutor(clock, StepTime(0.5, 0.0, 0.0))
    seen: list[int] = []
    run = run_offline(_loop(), executor, [[1] * 100, [2] * 20], [5, 9], clock=clock.now, progress=seen.append)
    assert (run.requests, run.input_tokens, run.output_tokens) == (2, 120, 14)
    assert run.prefill.tokens >= 120 and run.prefill.steps >= 2
    assert run.decode.mean_step_s == 0.5
    assert run.seconds == run.executor_s == 0.5 * (run.prefill.steps + run.decode.steps)
    assert run.output_tokens_per_s == pytest.approx(14 / run.seconds)
    assert seen == sorted(seen) and seen[-1] == 14


def test_a_full_cache_preempts_and_still_finishes() -> None:
    """With KV memory for less than the batch, requests are preempted and all tokens come nevertheless."""
    clock = VirtualClock()
    executor = SimulatedExecutor(clock, StepTime(0.1, 0.0, 0.0))
    run = run_offline(_loop(num_blocks=8), executor, [[i] * 30 for i in range(4)], [60] * 4, clock=clock.now)
    assert run.output_tokens == 240 and run.preemptions > 0


def test_a_loop_can_run_several_batches() -> None:
    """The same loop runs a batch twice, and the second is timed like the first."""
    clock = VirtualClock()
    loop, executor = _loop(), SimulatedExecutor(clock, StepTime(0.1, 0.001, 0.0))
    first, second = (run_offline(loop, executor, [[3] * 40], [8], clock=clock.now) for _ in range(2))
    assert first.seconds == pytest.approx(second.seconds)


def test_a_request_that_never_fits_states_both_numbers() -> None:
    """A request larger than all KV memory is refused with its size and the room there is."""
    clock = VirtualClock()
    executor = SimulatedExecutor(clock, StepTime(0.1, 0.0, 0.0))
    with pytest.raises(Problem) as caught:
        run_offline(_loop(num_blocks=4), executor, [[1] * 60], [5], clock=clock.now)
    assert caught.value.code == "context_length_exceeded"
    assert "65" in caught.value.message and "64" in caught.value.message


def test_a_failing_step_is_not_hidden() -> None:
    """What the executor raises reaches the caller."""

    class Broken:
        def execute(self, plan: StepPlan) -> StepResult:
            raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        run_offline(_loop(), Broken(), [[1, 2]], [3], clock=lambda: 0.0)
