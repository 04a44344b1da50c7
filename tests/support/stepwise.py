"""An executor driven by hand: each step computes what a test says, and every distribution comes back.

In: a decoder and how many tokens of which sequences to compute; out: log-probabilities over the whole vocabulary.
Pages hold NaN at first, so that reading what nobody wrote cannot pass unseen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from penstock.engine.cpu.defaults import SamplingDefaults
from penstock.engine.cpu.executor import CpuExecutor
from penstock.engine.cpu.fast_attention import make_attention
from penstock.engine.cpu.forward import MakeAttention
from penstock.engine.sequence import Sequence, StepPlan, StepResult, TokenScore
from penstock.models.decoder import Decoder
from penstock.wire.engine import FinishReason, Sampling
from penstock.wire.errors import Problem

BLOCK_TOKENS = 4
NUM_BLOCKS = 128


class NoSink:
    """The driver reads results itself."""

    def prompt_scored(self, scores: list[TokenScore]) -> None: ...

    def push(self, token_id: int, score: TokenScore | None) -> bool:
        return False

    def finish(self, reason: FinishReason, stop_token_id: int | None, num_cached_tokens: int) -> None: ...

    def fail(self, problem: Problem) -> None: ...


@dataclass
class Driver:
    """Plans steps by hand; ``block_order`` is the order in which blocks are handed out."""

    decoder: Decoder
    block_order: list[int] = field(default_factory=lambda: list(range(NUM_BLOCKS)))
    dtype: torch.dtype = torch.float32
    attention: MakeAttention = make_attention
    block_tokens: int = BLOCK_TOKENS

    def __post_init__(self) -> None:
        self.executor = CpuExecutor(
            self.decoder,
            num_blocks=NUM_BLOCKS,
            block_tokens=self.block_tokens,
            dtype=self.dtype,
            sampling_defaults=SamplingDefaults(),
            attention=self.attention,
        )
        for cache in (*self.pages.keys, *self.pages.values):
            cache.view(torch.int8).fill_(-1)  # bytes that are all ones are NaN in any format of floats, scales too
        self._free = list(reversed(self.block_order))

    @property
    def pages(self) -> Any:
        """The pages, with ``keys`` and ``values`` by layer."""
        return self.executor.attention.pages  # type: ignore[attr-defined]  # each attention has pages of its kind

    def sequence(self, prompt: list[int], emitted: list[int] | None = None) -> Sequence:
        """A greedy sequence that reports the whole distribution of every token; ``emitted``: resumed after those."""
        return Sequence(
            id="",
            token_ids=[*prompt, *(emitted or [])],
            num_prompt_tokens=len(prompt),
            max_tokens=64,
            sampling=Sampling(seed=0, temperature=0.0),
            sink=NoSink(),
            num_logprobs=self.decoder.config.vocab_size,
            score_prompt=True,
        )

    def step(self, *works: tuple[Sequence, int]) -> dict[int, list[list[float]]]:
        """Compute so many tokens of each; append what was sampled; the distributions that came back, by ``id()``."""
        ordered = sorted(works, key=lambda work: work[0].num_remaining > 1)
        for sequence, count in ordered:
            missing = -(-(sequence.num_computed + count) // self.block_tokens) - len(sequence.block_ids)
            sequence.block_ids.extend(self._free.pop() for _ in range(missing))
        plan = StepPlan(
            step=1,
            sequences=[sequence for sequence, _ in ordered],
            starts=[sequence.num_computed for sequence, _ in ordered],
            counts=[count for _, count in ordered],
            epochs=[0] * len(ordered),
            num_decodes=sum(sequence.num_remaining == 1 for sequence, _ in ordered),
        )
        return self._take(plan, self.executor.execute(plan))

    def _take(self, plan: StepPlan, result: StepResult) -> dict[int, list[list[float]]]:
        rows = {}
        for i, sequence in enumerate(plan.sequences):
            sequence.num_computed += plan.counts[i]
            scores = list(result.prompt_scores[i])
            token_id, last = result.token_ids[i], result.scores[i]
            if token_id is not None:
                sequence.token_ids.append(token_id)
            if last is not None:
                scores.append(last)
            rows[id(sequence)] = [distribution(score) for score in scores]
        return rows


def distribution(score: TokenScore) -> list[float]:
    """A full ``top`` list as log-probabilities in vocabulary order."""
    by_token = dict(score.top)
    assert by_token[score.token_id] == pytest.approx(score.logprob)
    return [by_token[token_id] for token_id in range(len(by_token))]


def prefill(driver: Driver, sequence: Sequence, splits: list[int]) -> list[list[float]]:
    rows = []
    for count in splits:
        rows += driver.step((sequence, count))[id(sequence)]
    return rows


def decode(driver: Driver, sequence: Sequence, count: int) -> list[list[float]]:
    return prefill(driver, sequence, [1] * count)
