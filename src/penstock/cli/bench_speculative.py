"""What speculation brings: the same answers with it and without, in turns, on one engine.

In: an engine that can propose; out: for each workload and number of streams how many times as fast it is.
By look-up the answers are given: the model computes every row, and what it would have sampled is replaced.  So a model
that has learnt nothing quotes, too.  By a draft model they are the model's own, greedy.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from penstock.events.list import Event, StepDone
from penstock.loadgen.repeats import ANSWER_TOKENS, KINDS, PROMPT_TOKENS, Exchange, exchanges, passages
from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from penstock.engine.loop import Loop
    from penstock.engine.sequence import Executor, Sequence, StepPlan, StepResult, TokenScore
    from penstock.engine.server.booted import Booted

_ORDINARY_CHARS = 200_000


class Speculated(msgspec.Struct, frozen=True, kw_only=True):
    """One workload.  Seconds of the steps that only decode, by run; the first pair warms up and is not here.

    ``speedup``: the median of without over with, pair by pair.  ``accepted_share``: of the proposed tokens;
    ``mean_accepted_length``: tokens that a step brought a stream by a proposal, its own one included; ``None`` where
    nothing was proposed.
    """

    workload: str
    streams: int
    speedup: float
    least_speedup: float
    off_tokens_per_s: float
    on_tokens_per_s: float
    proposals: int
    proposed_tokens: int
    accepted_tokens: int
    accepted_share: float | None
    mean_accepted_length: float | None
    off_s: list[float]
    on_s: list[float]


class _Proposals:
    """Counts what was proposed."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.proposals = self.proposed = self.accepted = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self.proposals += event.proposals
            self.proposed += event.proposed_tokens
            self.accepted += event.accepted_tokens


class Scripted:
    """An executor whose sequences say what is written for them, by their places in the run, at the price of another."""

    def __init__(self, executor: Executor, answers: Items[list[int]]) -> None:
        self._executor = executor
        self._answers = answers

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute the step; then the script's tokens, as many as agree with what was proposed and one more."""
        result = self._executor.execute(plan)
        token_ids = list(result.token_ids)
        further: dict[int, list[tuple[int, TokenScore | None]]] = {}
        for i, sequence in enumerate(plan.sequences):
            if plan.reaches_end(i):
                proposal = plan.proposals.get(i, [])
                said = self._answer(sequence)[sequence.num_output_tokens :][: len(proposal) + 1]
                wrong = (depth for depth, token_id in enumerate(proposal) if token_id != said[depth])
                taken = said[: next(wrong, len(proposal)) + 1]
                token_ids[i] = taken[0]
                if proposal:
                    further[i] = [(token_id, None) for token_id in taken[1:]]
        later = [[self._said(sequence, 1 + depth) for sequence in plan.sequences] for depth in range(len(result.later))]
        return replace(result, token_ids=token_ids, further=further, later=later)

    def _said(self, sequence: Sequence, depth: int) -> int:
        return self._answer(sequence)[sequence.num_output_tokens + depth]

    def _answer(self, sequence: Sequence) -> list[int]:
        return self._answers[int(sequence.id.rpartition("-")[2])]


def compare(
    booted: Booted,
    streams: Items[int],
    runs: int,
    vocabulary: int,
    clock: Callable[[], float] = time.perf_counter,
    *,
    say: Callable[[str], None],
) -> list[Speculated]:
    """Every workload with so many streams each, ``runs`` pairs after one that warms up.

    Raises ``context_length_exceeded``, and whatever a step raises.
    """
    if booted.context_tokens < PROMPT_TOKENS + ANSWER_TOKENS:
        message = f"A request has {PROMPT_TOKENS + ANSWER_TOKENS} tokens; the context is {booted.context_tokens}."
        raise Problem("context_length_exceeded", message)
    found = []
    for count in streams:
        for name, given in _workloads(booted, count, vocabulary):
            say(f"{name}, {count} streams")
            found.append(_compared(booted, name, given, runs, clock))
    return found


def _workloads(booted: Booted, count: int, vocabulary: int) -> Iterator[tuple[str, list[Exchange]]]:
    for kind in KINDS:
        yield kind, exchanges(kind, count, vocabulary=vocabulary)
        if kind == "quoting" and (ordinary := _ordinary(booted)):
            yield "ordinary", passages(ordinary, count)


def _ordinary(booted: Booted) -> list[int]:
    """Python's help topics, in the model's tokens; none where Python came without them."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return []
    text = "\n".join(topics[name] for name in sorted(topics))[:_ORDINARY_CHARS]
    return booted.tokenizer.encode(text, add_special_tokens=False)


def _compared(booted: Booted, name: str, given: list[Exchange], runs: int, clock: Callable[[], float]) -> Speculated:
    from penstock.engine.offline import run_offline

    counted = _Proposals()
    rules = booted.loop.scheduler.rules
    executor = booted.executor if rules.drafts else Scripted(booted.executor, [answer for _, answer in given])
    loops = {False: _loop(booted, speculates=False), True: _loop(booted, speculates=True, emit=counted)}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for run in range(runs + 1):
        if run == 1:
            counted.clear()
        for speculates in (False, True) if run % 2 else (True, False):
            prompts, lengths = [prompt for prompt, _ in given], [len(answer) for _, answer in given]
            done = run_offline(loops[speculates], executor, prompts, lengths, clock=clock)
            seconds[speculates].append(done.decode.seconds)
    off_s, on_s = seconds[False][1:], seconds[True][1:]
    speedups = [off / on for off, on in zip(off_s, on_s, strict=True)]
    tokens = sum(len(answer) for _, answer in given)
    return Speculated(
        workload=name,
        streams=len(given),
        speedup=statistics.median(speedups),
        least_speedup=min(speedups),
        off_tokens_per_s=tokens / statistics.median(off_s),
        on_tokens_per_s=tokens / statistics.median(on_s),
        proposals=counted.proposals,
        proposed_tokens=counted.proposed,
        accepted_tokens=counted.accepted,
        accepted_share=counted.accepted / counted.proposed if counted.proposed else None,
        mean_accepted_length=1 + counted.accepted / counted.proposals if counted.proposals else None,
        off_s=off_s,
        on_s=on_s,
    )


def _loop(booted: Booted, *, speculates: bool, emit: Callable[[Event], None] = lambda event: None) -> Loop:
    """A loop that has seen nothing yet, over the engine's blocks; only one of them is at work at a time."""
    from penstock.engine.kv_cache import BlockPool
    from penstock.engine.loop import Loop
    from penstock.engine.scheduler import Scheduler

    scheduler = booted.loop.scheduler
    rules = scheduler.rules if speculates else replace(scheduler.rules, speculative_tokens=0, drafts=False)
    return Loop(Scheduler(rules, BlockPool(scheduler.pool.num_blocks), prefix_caching=False), emit)


def table(found: Items[Speculated]) -> list[str]:
    """A line for each, and one above them."""
    lines = ["workload    streams   speed-up  (least)   tokens/s off -> on   accepted  mean length"]
    for one in found:
        accepted = "-" if one.accepted_share is None else f"{one.accepted_share:.0%}"
        length = "-" if one.mean_accepted_length is None else f"{one.mean_accepted_length:.2f}"
        lines.append(
            f"{one.workload:<11} {one.streams:7} {one.speedup:10.2f}  ({one.least_speedup:.2f})"
            f" {one.off_tokens_per_s:12.1f} -> {one.on_tokens_per_s:<8.1f} {accepted:>6}  {length:>11}"
        )
    return lines
