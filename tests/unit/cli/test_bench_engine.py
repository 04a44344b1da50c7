"""The offline measurement around the engine."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from penstock.cli.bench_batch import measure
from penstock.cost.time import StepTime
from penstock.engine.kv_cache import BlockPool
from penstock.engine.loop import Loop
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import StepPlan, StepResult
from penstock.models.fast.profile import StepKind
from penstock.policy.batch import BatchRules
from penstock.sim.clock import VirtualClock
from penstock.sim.executor import SimulatedExecutor
from penstock.wire.errors import Problem


def _engine() -> tuple[Loop, SimulatedExecutor, VirtualClock]:
    clock = VirtualClock()
    rules = BatchRules(max_step_tokens=512, max_num_seqs=256, block_tokens=32)
    loop = Loop(Scheduler(rules, BlockPool(4096), prefix_caching=False), lambda event: None)
    return loop, SimulatedExecutor(clock, StepTime(0.01, 0.0, 0.0)), clock


def test_batch_twice_then_a_lone_request() -> None:
    """The fixed workload runs once to warm up and once for the figure, then 32 tokens in and 64 out alone."""
    loop, executor, clock = _engine()
    measured = measure(loop, executor, 16, 2, 15000, 4096, lambda text: None, clock.now)
    assert (measured.input_tokens, measured.output_tokens) == (2687, 1288)
    assert len(measured.batch) == 2 and len(measured.lone) == 1
    assert measured.output_tokens_per_s == measured.batch[1].output_tokens_per_s
    assert (measured.lone[0].input_tokens, measured.lone[0].output_tokens) == (32, 64)
    assert measured.lone_tokens_per_s == pytest.approx(64 / (64 * 0.01))


def test_a_batch_with_adapters_follows_each_without() -> None:
    """Its requests take the adapters in turn, and its cost is told as a multiple."""
    loop, executor, clock = _engine()
    seen: list[object] = []
    execute = executor.execute

    def note(plan: StepPlan) -> StepResult:
        seen.extend(sequence.adapter for sequence in plan.sequences)
        clock.advance(0.001 * any(sequence.adapter for sequence in plan.sequences))
        return execute(plan)

    executor.execute = note  # type: ignore[method-assign]  # to look at what is computed
    adapters = [SimpleNamespace(digest=name, num_bytes=1) for name in "ab"]
    measured = measure(loop, executor, 16, 3, 15000, 4096, lambda text: None, clock.now, adapters)
    assert len(measured.adapted) == 3 and measured.adapted[0].output_tokens == measured.output_tokens
    assert measured.adapted_cost == pytest.approx(1.1)
    assert {adapter.digest for adapter in seen if adapter is not None} == {"a", "b"}  # type: ignore[attr-defined]  # ours


def test_a_short_context_is_refused() -> None:
    """A model whose context the workload exceeds is an error with both numbers, before anything runs."""
    loop, executor, clock = _engine()
    with pytest.raises(Problem) as caught:
        measure(loop, executor, 16, 2, 15000, 128, lambda text: None, clock.now)
    assert caught.value.code == "context_length_exceeded" and "128" in caught.value.message
    assert clock.now() == 0.0


@pytest.mark.parametrize(("flags", "code"), [(("--quantization", "int3"), 2), (("--dtype", "fp4"), 1)])
def test_numbers_that_nobody_computes_in_are_refused_by_name(flags: tuple[str, ...], code: int) -> None:
    """At once, not after loading."""
    command = [sys.executable, "-m", "penstock", "bench", "engine", "/no/such/model", *flags]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert flags[1] in done.stderr


def test_a_profile_is_of_batches_that_count_and_of_lone_requests() -> None:
    """Watching begins anew for each, after the warm-up."""

    class Watched:
        said: list[str] = []

        def watch(self) -> None:
            self.said.append("watch")

        def shares(self, kind: StepKind | None = None) -> dict[str, float]:
            self.said.append(kind or "all")
            return {"multiply": 1.0 / len(self.said)}

    loop, executor, clock = _engine()
    watched = Watched()
    measured = measure(loop, executor, 2, 3, 15000, 4096, lambda text: None, clock.now, watched=watched)
    assert watched.said == ["watch", "all", "prefill", "decode", "watch", "all"]
    shares = measured.batch_shares, measured.prefill_shares, measured.decode_shares, measured.lone_shares
    assert shares == tuple({"multiply": 1 / n} for n in (2, 3, 4, 6))
