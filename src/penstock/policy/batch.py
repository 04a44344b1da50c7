"""What the next step computes, for whom, and who has to give way.

In: a read-only view of the queues and of the idle KV blocks; out: a verdict with its why.
Pure: touches no queue and no block.  There is no prefill phase and no decode phase, only tokens not computed yet,
under one token budget (the idea of vLLM's V1 scheduler); decodes come first, so that no prompt stalls a stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

Held = Literal["", "budget", "blocks", "sequences", "preempting", "whole"]


class Work(Protocol):
    """A sequence as the policy sees it."""

    @property
    def num_tokens(self) -> int: ...
    @property
    def num_computed(self) -> int: ...
    @property
    def num_remaining(self) -> int: ...
    @property
    def block_ids(self) -> list[int]: ...


W = TypeVar("W", bound=Work)
V = TypeVar("V", bound=Work)


class BatchView(Protocol[V]):
    """Live state, read-only.  ``running`` is in order of admission, ``waiting`` in order of service."""

    @property
    def running(self) -> Items[V]: ...
    @property
    def waiting(self) -> Iterable[V]: ...
    @property
    def num_idle_blocks(self) -> int: ...
    def count_private_blocks(self, work: V, /) -> int: ...
    def cached_prefix(self, work: V, /) -> tuple[int, int]:
        """Cached blocks that ``work`` would start from, and how many of those are idle."""


@dataclass(frozen=True, slots=True)
class BatchRules:
    """Limits of one step.  ``max_step_tokens`` bounds how long a prompt's chunk may hold up the running streams.

    ``stateless``: the model keeps nothing from one step to the next (an encoder, where every token sees the later
    ones too), so that a prompt is computed whole and needs no blocks.
    """

    max_step_tokens: int
    max_num_seqs: int
    block_tokens: int
    stateless: bool = False


@dataclass(slots=True)
class BatchVerdict(Generic[W]):
    """Who computes how many tokens: decodes first.  ``held`` says why the first waiting sequence was not admitted."""

    works: list[W] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    num_decodes: int = 0
    num_admitted: int = 0
    preempted: list[W] = field(default_factory=list)
    held: Held = ""


def batch(view: BatchView[W], rules: BatchRules) -> BatchVerdict[W]:
    """Decide one step.

    Blocks are given in order of admission: whoever came earlier may take the blocks of whoever came last (preemption
    by recompute), so the first running sequence always progresses and every sequence that fits alone ends.
    A sequence that gets no blocks and has nobody behind it stalls for the step.
    """
    verdict: BatchVerdict[W] = BatchVerdict()
    if rules.stateless:
        _admit_whole(view, rules, verdict)
        return verdict
    idle, budget = _serve_running(view, rules, verdict)
    if verdict.preempted:
        verdict.held = "preempting"
    else:
        _admit(view, rules, verdict, idle, budget)
    return verdict


def _serve_running(view: BatchView[W], rules: BatchRules, verdict: BatchVerdict[W]) -> tuple[int, int]:
    running = view.running
    idle, budget, block_tokens = view.num_idle_blocks, rules.max_step_tokens, rules.block_tokens
    remaining = [work.num_remaining for work in running]
    decodes = [i for i, left in enumerate(remaining) if left == 1]
    order = decodes + [i for i, left in enumerate(remaining) if left != 1]
    counts = [0] * len(running)
    needs = [0] * len(running)
    num_kept = len(running)
    for i in order:
        if i >= num_kept or budget <= 0:
            continue
        work = running[i]
        count = min(remaining[i], budget)
        room = len(work.block_ids) * block_tokens - work.num_computed
        need = -(-(count - room) // block_tokens) if count > room else 0
        while need > idle and num_kept > i + 1:
            num_kept -= 1
            verdict.preempted.append(running[num_kept])
            idle += view.count_private_blocks(running[num_kept]) + needs[num_kept]
            budget += counts[num_kept]
            counts[num_kept] = 0
        if need > idle:
            count = max(0, room + idle * block_tokens)
            need = idle if count else 0
        counts[i], needs[i] = count, need
        idle -= need
        budget -= count
    granted = [i for i in order if counts[i]]
    verdict.works = [running[i] for i in granted]
    verdict.counts = [counts[i] for i in granted]
    verdict.num_decodes = sum(remaining[i] == 1 for i in granted)
    return idle, budget


def _admit(view: BatchView[W], rules: BatchRules, verdict: BatchVerdict[W], idle: int, budget: int) -> None:
    block_tokens = rules.block_tokens
    num_running = len(view.running)
    for work in view.waiting:
        if num_running >= rules.max_num_seqs:
            verdict.held = "sequences"
            return
        if budget <= 0:
            verdict.held = "budget"
            return
        num_cached, num_cached_idle = view.cached_prefix(work)
        num_blocks = -(-work.num_tokens // block_tokens)
        # One block per running sequence stays back: whoever decodes will soon need it, and preempting costs more.
        if num_blocks - num_cached + num_cached_idle > idle - num_running:
            verdict.held = "blocks"
            return
        count = min(work.num_tokens - num_cached * block_tokens, budget)
        idle -= -(-(num_cached * block_tokens + count) // block_tokens) - num_cached + num_cached_idle
        budget -= count
        num_running += 1
        verdict.num_admitted += 1
        verdict.works.append(work)
        verdict.counts.append(count)


def _admit_whole(view: BatchView[W], rules: BatchRules, verdict: BatchVerdict[W]) -> None:
    """Prompts in order, for as long as the next one fits whole; the first has a step of its own if need be."""
    assert not view.running, "a stateless sequence ends with its only step"
    budget = rules.max_step_tokens
    for work in view.waiting:
        if verdict.num_admitted >= rules.max_num_seqs:
            verdict.held = "sequences"
            return
        if verdict.works and work.num_tokens > budget:
            verdict.held = "whole"
            return
        budget -= work.num_tokens
        verdict.num_admitted += 1
        verdict.works.append(work)
        verdict.counts.append(work.num_tokens)
