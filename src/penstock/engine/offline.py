"""A batch through an engine without a server, timed.

In: a loop, its executor and prompts; out: an :class:`OfflineRun`.
Greedy, no stop tokens, all requests present at the start.  Everything but the executor runs on the caller's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import replace

import msgspec

from penstock.engine.adapters import Adapter
from penstock.engine.loop import Loop
from penstock.engine.prefix import prefix_root
from penstock.engine.sequence import Executor, Sequence, StepPlan, TokenScore
from penstock.wire.engine import FinishReason, Sampling
from penstock.wire.errors import Problem


class StepStats(msgspec.Struct, kw_only=True):
    """Steps of one kind and how long they took, book-keeping included."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    mean_step_s: float | None = None

    def add(self, tokens: int, seconds: float, steps: int = 1) -> None:
        """``steps`` that were one call."""
        self.steps += steps
        self.tokens += tokens
        self.seconds += seconds
        self.mean_step_s = self.seconds / self.steps


class OfflineRun(msgspec.Struct, kw_only=True):
    """One batch.  A step that computes any prompt token counts under ``prefill``, the others under ``decode``.

    ``executor_s`` is the part of ``seconds`` spent in the executor; the rest is scheduling.
    """

    requests: int
    input_tokens: int
    output_tokens: int
    seconds: float
    output_tokens_per_s: float
    executor_s: float
    preemptions: int
    prefill: StepStats
    decode: StepStats


class _Count:
    """A sink that keeps the first problem and otherwise only counts."""

    def __init__(self) -> None:
        self.tokens = 0
        self.problem: Problem | None = None

    def prompt_scored(self, scores: list[TokenScore]) -> None:
        raise AssertionError("nobody asked for scores")

    def push(self, token_id: int, score: TokenScore | None) -> bool:
        self.tokens += 1
        return False

    def finish(self, reason: FinishReason, stop_token_id: int | None, num_cached_tokens: int) -> None:
        assert reason == "length" and stop_token_id is None

    def fail(self, problem: Problem) -> None:
        self.problem = self.problem or problem


def run_offline(
    loop: Loop,
    executor: Executor,
    prompts: Items[list[int]],
    lengths: Items[int],
    *,
    clock: Callable[[], float],
    progress: Callable[[int], None] = lambda output_tokens: None,
    adapters: Items[Adapter | None] = (None,),
) -> OfflineRun:
    """Generate exactly ``lengths[i]`` tokens for ``prompts[i]``; ``clock`` gives seconds.

    ``progress`` sees the tokens so far after each step.  ``adapters`` are used in turn.

    Raises ``context_length_exceeded`` for a request that all KV memory cannot hold, and whatever a step raises.
    """
    assert not len(loop), "the loop has other work"
    sink = _Count()
    sequences = [
        _sequence(loop, index, prompt, length, sink, adapters[index % len(adapters)])
        for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]
    prefill, decode, executor_s = StepStats(), StepStats(), 0.0
    preempted_before = loop.scheduler.num_preempted
    start = then = clock()
    for sequence in sequences:
        loop.submit(sequence)
    turned = start
    while (plan := loop.plan()) is not None:
        begin = clock()
        result = executor.execute(plan)
        ended = clock()
        executor_s += ended - begin
        # As in a server: all that lies between two tokens of a stream.
        loop.commit(plan, replace(result, seconds=ended - turned, between_s=begin - turned))
        turned = ended
        if sink.problem is not None:
            raise sink.problem
        now = clock()
        rounds = result.num_rounds
        (decode if _only_decodes(plan) else prefill).add(plan.num_tokens * rounds, now - then, rounds)
        then = now
        progress(sink.tokens)
    seconds = clock() - start
    assert sink.tokens == sum(lengths)
    return OfflineRun(
        requests=len(sequences),
        input_tokens=sum(map(len, prompts)),
        output_tokens=sink.tokens,
        seconds=seconds,
        output_tokens_per_s=sink.tokens / seconds if seconds > 0 else 0.0,
        executor_s=executor_s,
        preemptions=loop.scheduler.num_preempted - preempted_before,
        prefill=prefill,
        decode=decode,
    )


def _sequence(
    loop: Loop, index: int, prompt: list[int], length: int, sink: _Count, adapter: Adapter | None
) -> Sequence:
    longest = loop.scheduler.max_sequence_tokens
    if len(prompt) + length > longest:
        message = f"Request {index} needs {len(prompt) + length} tokens of KV cache; there is room for {longest}."
        raise Problem("context_length_exceeded", message)
    return Sequence(
        id=f"offline-{index}",
        token_ids=list(prompt),
        num_prompt_tokens=len(prompt),
        max_tokens=length,
        min_tokens=length,
        sampling=Sampling(seed=index, temperature=0.0),
        sink=sink,
        prefix_root=prefix_root(adapter="" if adapter is None else adapter.digest),
        adapter=adapter,
    )


def _only_decodes(plan: StepPlan) -> bool:
    return plan.num_streams == len(plan.sequences)
