"""The fixed workload of ``penstock bench engine``: a batch of requests, then a lone one.

In: a loop, its executor and sizes; out: all runs, and the medians of those that count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from penstock.loadgen.turns import LONE_OUTPUT_TOKENS, LONE_PROMPT_TOKENS
from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from penstock.engine.adapters import Adapter
    from penstock.engine.loop import Loop
    from penstock.engine.offline import OfflineRun
    from penstock.engine.sequence import Executor
    from penstock.models.fast.profile import StepKind


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """All runs of one engine.  ``batch[0]`` is the warm-up; the figures are medians of the others.

    ``adapted``: the batches with adapters, of which the first warms up, too; ``adapted_cost``: how many times the time
    of the batch before it each of them takes, the median.
    ``batch_shares``, ``lone_shares``: of the time in compiled steps by kind of job; empty if nobody asked.
    ``prefill_shares``, ``decode_shares``: the same of the batch's steps of one kind.
    """

    requests: int
    vocabulary: int
    input_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    lone_tokens_per_s: float
    batch: list[OfflineRun]
    lone: list[OfflineRun]
    adapted: list[OfflineRun] = []
    adapted_cost: float | None = None
    batch_shares: dict[str, float] = {}
    prefill_shares: dict[str, float] = {}
    decode_shares: dict[str, float] = {}
    lone_shares: dict[str, float] = {}


class Watched(Protocol):
    """What sums how long each kind of job takes, in all steps or in those of one kind."""

    def watch(self) -> None: ...

    def shares(self, kind: StepKind | None = None) -> dict[str, float]: ...


def measure(
    loop: Loop,
    executor: Executor,
    requests: int,
    runs: int,
    vocabulary: int,
    context_tokens: int,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
    adapters: Sequence[Adapter] = (),
    watched: Watched | None = None,
) -> Measured:
    """The batch ``runs`` times and the lone request ``runs - 1`` times.  Raises ``context_length_exceeded``.

    ``watched`` is asked for shares of all batches but the first, and of the lone requests.
    """
    import statistics

    from penstock.engine.offline import run_offline

    prompts, lengths = _workload(requests, vocabulary, context_tokens)

    def batch(run: int, adapters: Sequence[Adapter | None] = (None,)) -> OfflineRun:
        return run_offline(
            loop,
            executor,
            prompts,
            lengths,
            clock=clock,
            progress=lambda done: say(f"batch {run}: {done}/{sum(lengths)} tokens"),
            adapters=adapters,
        )

    def lone() -> OfflineRun:
        return run_offline(loop, executor, [prompts[0][:LONE_PROMPT_TOKENS]], [LONE_OUTPUT_TOKENS], clock=clock)

    batches, adapted = [], []
    for run in range(runs):
        if run == 1 and watched is not None:
            watched.watch()
        batches.append(batch(run))
        if adapters:
            adapted.append(batch(run, adapters))
    batch_shares, prefill_shares, decode_shares = _shares(watched)
    if watched is not None:
        watched.watch()
    lones = [lone() for _ in range(runs - 1)]
    return Measured(
        requests=requests,
        vocabulary=vocabulary,
        input_tokens=batches[0].input_tokens,
        output_tokens=batches[0].output_tokens,
        output_tokens_per_s=statistics.median(run.output_tokens_per_s for run in batches[1:]),
        lone_tokens_per_s=statistics.median(run.output_tokens_per_s for run in lones),
        batch=batches,
        lone=lones,
        adapted=adapted,
        adapted_cost=_cost(adapted, batches),
        batch_shares=batch_shares,
        prefill_shares=prefill_shares,
        decode_shares=decode_shares,
        lone_shares=watched.shares() if watched is not None else {},
    )


def _shares(watched: Watched | None) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Of all steps, of those that read prompts, and of those that only decode."""
    if watched is None:
        return {}, {}, {}
    return watched.shares(), watched.shares("prefill"), watched.shares("decode")


def _cost(adapted: Sequence[OfflineRun], plain: Sequence[OfflineRun]) -> float | None:
    """``None``: there are no adapters."""
    import statistics

    if not adapted:
        return None
    return statistics.median(one.seconds / other.seconds for one, other in zip(adapted[1:], plain[1:], strict=True))


def _workload(requests: int, vocabulary: int, context_tokens: int) -> tuple[list[list[int]], list[int]]:
    """The batch's prompts and the lengths of their outputs.  Raises ``Problem`` where the model cannot take them."""
    from penstock.loadgen.workloads import FIRST_TOKEN_ID, offline_batch

    if vocabulary <= FIRST_TOKEN_ID:
        raise Problem("checkpoint_unsupported", f"A vocabulary of {vocabulary} is too small for random prompts.")
    prompts, lengths = offline_batch(requests, vocabulary=vocabulary)
    longest = max(len(prompt) + length for prompt, length in zip(prompts, lengths, strict=True))
    if longest > context_tokens:
        message = f"The workload's longest request has {longest} tokens; the context is {context_tokens}."
        raise Problem("context_length_exceeded", message)
    return prompts, lengths
