"""Greedy answers of a decoder, computed by the engine that serves: its scheduler, its KV pages, its executor.

In: a decoder and prompts as token ids; out: the tokens of each answer without the stop token that ended it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from penstock.engine.cpu.defaults import SamplingDefaults
from penstock.engine.cpu.executor import CpuExecutor
from penstock.engine.kv_cache import BlockPool
from penstock.engine.loop import Loop
from penstock.engine.prefix import prefix_root
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import Sequence as EngineSequence
from penstock.engine.sequence import TokenScore
from penstock.models.decoder import Decoder
from penstock.policy.batch import BatchRules
from penstock.wire.engine import FinishReason, Sampling
from penstock.wire.errors import Problem

_RULES = BatchRules(max_step_tokens=1024, max_num_seqs=128, block_tokens=32)


class Answer:
    """The sink of one sequence.  ``ended``: by a stop token, not by its length."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.ended = False
        self.problem: Problem | None = None

    def prompt_scored(self, scores: list[TokenScore]) -> None:
        raise AssertionError("nobody asked for scores")

    def push(self, token_id: int, score: TokenScore | None) -> bool:
        self.token_ids.append(token_id)
        return False

    def finish(self, reason: FinishReason, stop_token_id: int | None, num_cached_tokens: int) -> None:
        self.ended = stop_token_id is not None

    def fail(self, problem: Problem) -> None:
        self.problem = problem


def answer_greedily(
    decoder: Decoder,
    prompts: Sequence[list[int]],
    *,
    max_tokens: int,
    stop_token_ids: frozenset[int],
    progress: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """One answer of at most ``max_tokens`` tokens per prompt; ``progress`` hears how many have ended.

    Raises ``context_length_exceeded`` for a prompt that leaves less than ``max_tokens`` of the model's context.
    """
    loop, executor = _engine(decoder)
    answers = []
    for number, prompt in enumerate(prompts):
        needed, context = len(prompt) + max_tokens, decoder.config.max_position
        if needed > context:
            message = f"Prompt {number} and its answer take {needed} tokens; the model's context has {context}."
            raise Problem("context_length_exceeded", message)
        answers.append(answer := Answer())
        loop.submit(_sequence(str(number), prompt, max_tokens, stop_token_ids, answer))
    while (plan := loop.plan()) is not None:
        loop.commit(plan, executor.execute(plan))
        progress(len(prompts) - len(loop))
    assert all(answer.problem is None for answer in answers)
    return answers


def _engine(decoder: Decoder) -> tuple[Loop, CpuExecutor]:
    """With KV memory for every sequence that may run at once, so that none is ever preempted."""
    blocks_each = -(-decoder.config.max_position // _RULES.block_tokens)
    num_blocks = blocks_each * _RULES.max_num_seqs
    executor = CpuExecutor(
        decoder,
        num_blocks=num_blocks,
        block_tokens=_RULES.block_tokens,
        dtype=decoder.config.torch_dtype,
        sampling_defaults=SamplingDefaults(),
    )
    loop = Loop(Scheduler(_RULES, BlockPool(num_blocks), prefix_caching=False), lambda event: None)
    return loop, executor


def _sequence(
    name: str, prompt: list[int], max_tokens: int, stop_token_ids: frozenset[int], answer: Answer
) -> EngineSequence:
    return EngineSequence(
        id=name,
        token_ids=list(prompt),
        num_prompt_tokens=len(prompt),
        max_tokens=max_tokens,
        sampling=Sampling(seed=0, temperature=0.0),
        sink=answer,
        stop_token_ids=stop_token_ids,
        prefix_root=prefix_root(),
    )
