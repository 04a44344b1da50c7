"""What an engine says of its progress: over a real loop, with an executor that stands still when told to."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import cast

import pytest

from penstock.engine.kv_cache import BlockPool
from penstock.engine.loop import Loop
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import Sequence, StepPlan, StepResult
from penstock.engine.server import runner as runner_module
from penstock.engine.server.booted import Booted
from penstock.engine.server.runner import Runner
from penstock.engine.server.service import Service
from penstock.events.list import Event, StepDone
from penstock.policy.batch import BatchRules
from penstock.wire.engine import Sampling
from penstock.wire.load import Progress, ProgressRequest


class Executor:
    """Draws token 1 for whoever is due, ten milliseconds a token, unless the gate is shut."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()

    def execute(self, plan: StepPlan) -> StepResult:
        self.gate.wait(30)
        rows = range(len(plan.sequences))
        drawn = [1 if plan.reaches_end(i) else None for i in rows]
        return StepResult(plan.step, drawn, [None for _ in rows], [[] for _ in rows], seconds=0.01 * plan.num_tokens)


class Sink:
    """Takes everything."""

    def push(self, token_id: int, score: object) -> bool:
        return False

    def prompt_scored(self, scores: object) -> None: ...

    def finish(self, *args: object) -> None: ...

    def fail(self, problem: object) -> None: ...


def sequence(id: str, num_prompt: int) -> Sequence:
    return Sequence(
        id=id,
        token_ids=[0] * num_prompt,
        num_prompt_tokens=num_prompt,
        max_tokens=1000,
        sampling=Sampling(seed=1),
        sink=Sink(),
    )


async def test_steps_are_told_apart_from_a_standstill() -> None:
    """While it decodes its counts grow; while its executor hangs they stand, and the step's age passes its limit."""
    executor = Executor()
    rules = BatchRules(max_step_tokens=8, max_num_seqs=4, block_tokens=4)
    loop = Loop(Scheduler(rules, BlockPool(2000), prefix_caching=False), lambda event: None)
    runner = Runner(loop, executor)
    service = Service(cast(Booted, SimpleNamespace()), runner, model="m", max_waiting=9)
    running = asyncio.create_task(runner.run())

    def ask() -> Progress:
        return service.progress(ProgressRequest(ids=["a", "b", "c"]))

    assert ask() == Progress(steps=0, step_limit_s=600.0)
    for id, num_prompt in (("a", 3), ("b", 4000)):
        service._open[id].add(f"{id}#0")
        runner.submit(sequence(f"{id}#0", num_prompt))
    async with asyncio.timeout(10):
        while ask().steps < 20:
            await asyncio.sleep(0.001)
        before = ask()
        assert set(before.computed) == {"a", "b"} and before.computed["b"] is None, "b's prompt is still computed"
        executor.gate.clear()
        while runner.step_age_s < 0.05:
            await asyncio.sleep(0.001)
        still = ask()
        assert before.computed["a"] is not None and still.computed["a"] is not None
        assert still.computed["a"] >= before.computed["a"] >= 15
        # Eight tokens at ten milliseconds each, times the patience.
        assert 0.7 < still.step_limit_s < 0.9 and ask() == still
        executor.gate.set()
        while ask().steps == still.steps:
            await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_step_behind_one_that_raised_is_not_charged_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of a second behind one that raised after a hundred has taken a second."""
    executor, now_s, seconds = Executor(), 0.0, list[float]()

    class Failing:
        def execute(self, plan: StepPlan) -> StepResult:
            nonlocal now_s
            if plan.sequences[0].id == "a":
                now_s += 100.0
                raise RuntimeError
            now_s += 1.0
            return executor.execute(plan)

    def note(event: Event) -> None:
        if isinstance(event, StepDone):
            seconds.append(event.seconds)

    monkeypatch.setattr(runner_module, "time", SimpleNamespace(perf_counter=lambda: now_s))
    rules = BatchRules(max_step_tokens=8, max_num_seqs=1, block_tokens=4)
    loop = Loop(Scheduler(rules, BlockPool(2000), prefix_caching=False), note)
    runner = Runner(loop, Failing())
    for id in "ab":
        runner.submit(sequence(id, 3))
    running = asyncio.create_task(runner.run())
    async with asyncio.timeout(10):
        while not runner.num_steps:
            await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert seconds[0] == 1.0


async def test_steps_that_are_one_call_are_told_as_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them takes its share of the call's time, as if it had been alone."""
    now_s, rounds = 0.0, list[int]()

    class Quick:
        def execute(self, plan: StepPlan) -> StepResult:
            nonlocal now_s
            now_s += 0.0004 * plan.rounds
            rounds.append(plan.rounds)
            return StepResult(
                plan.step, [1], [None], [[]], seconds=0.0004 * plan.rounds, later=[[1]] * (plan.rounds - 1)
            )

    monkeypatch.setattr(runner_module, "time", SimpleNamespace(perf_counter=lambda: now_s))
    rules = BatchRules(max_step_tokens=8, max_num_seqs=1, block_tokens=16)
    loop = Loop(Scheduler(rules, BlockPool(2000), prefix_caching=False), lambda event: None)
    runner = Runner(loop, Quick())
    runner.submit(sequence("a", 3))
    running = asyncio.create_task(runner.run())
    async with asyncio.timeout(10):
        while runner.num_steps < 50:
            await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert max(rounds) > 1 and runner.step_time_s == pytest.approx(0.0004)
