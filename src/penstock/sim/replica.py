"""A modelled engine: continuous batching, chunked prefill and a prefix cache, as far as routing can tell.

In: jobs and their times; out: when each got its first token and its end.  Counts only, no tokens: a trace of ten
thousand requests takes seconds.  ``sim/replay.py`` runs the real scheduler, at a hundred times the cost.
Steps in which nothing but decoding happens are taken together, up to whatever happens next.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

import msgspec

from penstock.cost.time import StepTime
from penstock.loadgen.workloads import PREFIX_BLOCK_TOKENS


class EngineSize(msgspec.Struct, frozen=True, kw_only=True):
    """One replica.  ``kv_tokens``: what its KV cache holds; ``step_tokens``: computed in a step, at most."""

    step_time: StepTime = StepTime(base_s=0.012, per_token_s=1 / 16_000, per_kv_token_s=2e-8)
    kv_tokens: int = 768 * 1024
    step_tokens: int = 2048
    max_rows: int = 128


@dataclass(slots=True, eq=False)
class Job:
    """One request.  ``blocks`` name its prompt's beginnings; ``cached``: prompt tokens that it found at its turn."""

    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    arrived: float
    cached: int = 0
    left: int = 0
    done: int = 0
    first_at: float | None = None
    ended_at: float | None = None

    @property
    def held(self) -> int:
        """KV tokens that it holds when it is over."""
        return self.prompt_tokens + self.output_tokens


class SimulatedReplica:
    """Call ``submit`` when a job comes and ``finish_step`` at ``due``; both set ``due`` again."""

    def __init__(self, size: EngineSize) -> None:
        self.size = size
        self.due: float | None = None
        self.busy_s = 0.0
        self.computed_tokens = 0
        self._waiting: deque[Job] = deque()
        self._prefilling: deque[Job] = deque()
        self._decoding: list[Job] = []
        self._held = 0
        self._cache: OrderedDict[int, None] = OrderedDict()
        self._began = 0.0
        self._steps = 0
        self._chunks: list[tuple[Job, int]] = []

    @property
    def kv_use(self) -> float:
        """0 to 1: what running jobs hold."""
        return min(self._held / self.size.kv_tokens, 1.0)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def submit(self, job: Job, now: float) -> None:
        """Take a job; it takes part from the next step on."""
        self._waiting.append(job)
        if self.due is None:
            self._plan(now)
        elif self._steps > 1:
            # Of the steps that were taken together, those that have not begun wait for it.
            passed = (now - self._began) / (self.due - self._began)
            steps = min(int(passed * self._steps) + 1, self._steps)
            self.due = self._began + (self.due - self._began) * steps / self._steps
            self._steps = steps

    def finish_step(self) -> tuple[list[Job], list[Job]]:
        """What is planned has been computed; the jobs that got their first token by it, and those that ended."""
        assert self.due is not None
        now = self.due
        self.busy_s += now - self._began
        first: list[Job] = []
        for job, count in self._chunks:
            job.left -= count
            self.computed_tokens += count
            if job.left == 0:
                self._prefilling.remove(job)
                first.append(job)
        for job in self._decoding:
            job.done += self._steps
            self.computed_tokens += self._steps
        for job in first:
            job.first_at, job.done = now, 1
            self._remember(job)
            self._decoding.append(job)
        ended = [job for job in self._decoding if job.done >= job.output_tokens]
        if ended:
            self._decoding = [job for job in self._decoding if job.done < job.output_tokens]
            for job in ended:
                job.ended_at = now
                self._held -= job.held
        self._plan(now)
        return first, ended

    def _plan(self, now: float) -> None:
        """What is computed next, and when that is done."""
        self._admit()
        rows = len(self._decoding)
        budget = self.size.step_tokens - rows
        self._chunks = []
        for job in self._prefilling:
            count = min(job.left, budget)
            if count <= 0:
                break
            self._chunks.append((job, count))
            budget -= count
        if not rows and not self._chunks:
            self.due = None
            return
        self._began = now
        self._steps = 1 if self._chunks else min(job.output_tokens - job.done for job in self._decoding)
        kv_tokens = sum(job.prompt_tokens + job.done for job in self._decoding)
        kv_tokens += sum(job.prompt_tokens - job.left + count for job, count in self._chunks)
        tokens = rows + sum(count for _, count in self._chunks)
        grown = rows * (self._steps - 1) / 2  # on average over the steps
        self.due = now + self._steps * self.size.step_time.seconds(tokens, kv_tokens + int(grown))

    def _admit(self) -> None:
        """Whoever's turn it is and whose KV memory is free begins."""
        while self._waiting and len(self._decoding) + len(self._prefilling) < self.size.max_rows:
            job = self._waiting[0]
            if self._held and self._held + job.held > self.size.kv_tokens:
                return
            self._waiting.popleft()
            self._held += job.held
            job.cached = min(self._found(job.blocks) * PREFIX_BLOCK_TOKENS, job.prompt_tokens - 1)
            job.left = job.prompt_tokens - job.cached
            self._prefilling.append(job)
            self._evict()

    def _found(self, blocks: tuple[int, ...]) -> int:
        count = 0
        for block in blocks:
            if block not in self._cache:
                break
            self._cache.move_to_end(block)
            count += 1
        return count

    def _remember(self, job: Job) -> None:
        for block in reversed(job.blocks):  # the longest beginning is the first to be forgotten
            self._cache[block] = None
            self._cache.move_to_end(block)
        self._evict()

    def _evict(self) -> None:
        room = max(self.size.kv_tokens - self._held, 0) // PREFIX_BLOCK_TOKENS
        while len(self._cache) > room:
            self._cache.popitem(last=False)
