"""A trace through the production scheduler and loop, in virtual time.

In: requests with arrival times; out: when each got its first token and its end.  The same trace gives the same replay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from penstock.cost.time import StepTime
from penstock.engine.kv_cache import BlockPool
from penstock.engine.loop import Loop
from penstock.engine.prefix import prefix_root
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import Sequence, TokenScore
from penstock.events.list import Event
from penstock.policy.batch import BatchRules
from penstock.sim.clock import VirtualClock
from penstock.sim.executor import SimulatedExecutor
from penstock.wire.engine import FinishReason, Sampling
from penstock.wire.errors import Problem


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """One line of a trace: when it came (seconds), its prompt, how many tokens it asked for, and for whom."""

    arrival_s: float
    token_ids: list[int]
    output_tokens: int
    tenant: str = ""
    weight: float = 1.0
    priority: int = 0
    itl_target_s: float | None = None


@dataclass(slots=True)
class Recorder:
    """A sink that notes when things happened, in virtual seconds."""

    clock: VirtualClock
    arrival_s: float
    token_ids: list[int] = field(default_factory=list)
    token_s: list[float] = field(default_factory=list)
    first_token_s: float | None = None
    ended_s: float | None = None
    reason: str = ""
    num_cached_tokens: int = 0
    num_terminal: int = 0

    def prompt_scored(self, scores: list[TokenScore]) -> None:
        raise AssertionError("a simulated request asks for no prompt scores")

    def push(self, token_id: int, score: TokenScore | None) -> bool:
        if self.first_token_s is None:
            self.first_token_s = self.clock.now()
        self.token_ids.append(token_id)
        self.token_s.append(self.clock.now())
        return False

    def finish(self, reason: FinishReason, stop_token_id: int | None, num_cached_tokens: int) -> None:
        self._end(reason)
        self.num_cached_tokens = num_cached_tokens

    def fail(self, problem: Problem) -> None:
        self._end(problem.code)

    def _end(self, reason: str) -> None:
        self.ended_s = self.clock.now()
        self.reason = reason
        self.num_terminal += 1


@dataclass(slots=True)
class Replay:
    """What a replay did: one recorder per request in the trace's order, and all engine events."""

    requests: list[Recorder]
    events: list[Event]
    seconds: float


def replay(
    trace: Iterable[TracedRequest],
    *,
    rules: BatchRules,
    num_blocks: int,
    step_time: StepTime,
    prefix_caching: bool = True,
    vocab_size: int = 32000,
    after_step: Callable[[Loop], None] = lambda loop: None,
) -> Replay:
    """Run a trace to its end.  ``after_step`` sees the loop after every commit, for laws to check."""
    clock = VirtualClock()
    executor = SimulatedExecutor(clock, step_time, vocab_size)
    events: list[Event] = []
    loop = Loop(Scheduler(rules, BlockPool(num_blocks), prefix_caching=prefix_caching), events.append)
    pending = sorted(enumerate(trace), key=lambda item: item[1].arrival_s, reverse=True)
    recorders = {index: Recorder(clock, request.arrival_s) for index, request in pending}
    while pending or len(loop):
        while pending and pending[-1][1].arrival_s <= clock.now():
            index, request = pending.pop()
            loop.submit(_sequence(index, request, recorders[index]))
        plan = loop.plan()
        if plan is None:
            clock.advance(pending[-1][1].arrival_s - clock.now())
            continue
        loop.commit(plan, executor.execute(plan))
        after_step(loop)
    return Replay([recorders[index] for index in sorted(recorders)], events, clock.now())


def _sequence(index: int, request: TracedRequest, recorder: Recorder) -> Sequence:
    return Sequence(
        id=f"request-{index}",
        token_ids=list(request.token_ids),
        num_prompt_tokens=len(request.token_ids),
        max_tokens=request.output_tokens,
        sampling=Sampling(seed=index),
        sink=recorder,
        prefix_root=prefix_root(),
        tenant=request.tenant,
        weight=request.weight,
        priority=request.priority,
        itl_target_s=request.itl_target_s,
    )
