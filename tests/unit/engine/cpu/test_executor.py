"""The executor's own book-keeping: what is sampled, what is scored, and what happens without memory."""

from __future__ import annotations

import pytest
import torch
from stepwise import NoSink

from penstock.cost.memory import LOGITS_ROWS
from penstock.engine.cpu.defaults import SamplingDefaults
from penstock.engine.cpu.executor import CpuExecutor
from penstock.engine.cpu.pages import KvPages, PageShape
from penstock.engine.cpu.scores import score
from penstock.engine.sequence import Sequence, StepPlan
from penstock.models.config import ModelConfig
from penstock.models.decoder import Decoder
from penstock.models.rope import RopeConfig
from penstock.models.traits import LayerSpec
from penstock.wire.engine import Sampling
from penstock.wire.errors import Problem

BLOCK_TOKENS = 32


def sequence(prompt: list[int], block_ids: list[int], num_logprobs: int | None = None) -> Sequence:
    return Sequence(
        id="",
        token_ids=prompt,
        num_prompt_tokens=len(prompt),
        max_tokens=8,
        sampling=Sampling(seed=0, temperature=0.0),
        sink=NoSink(),
        num_logprobs=num_logprobs,
        score_prompt=num_logprobs is not None,
        block_ids=block_ids,
    )


def plan(sequences: list[Sequence], counts: list[int], num_decodes: int = 0) -> StepPlan:
    starts = [s.num_computed for s in sequences]
    return StepPlan(
        step=7,
        sequences=sequences,
        starts=starts,
        counts=counts,
        epochs=[0] * len(counts),
        num_decodes=num_decodes,
    )


@pytest.fixture
def executor() -> CpuExecutor:
    config = ModelConfig(
        architecture="LlamaForCausalLM",
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        hidden_size=16,
        intermediate_size=16,
        vocab_size=30,
        max_position=1024,
        norm_eps=1e-6,
        layers=(LayerSpec(RopeConfig(theta=10_000.0)),) * 1,
        tie_embeddings=True,
        dtype="float32",
    )
    decoder = Decoder(config)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source))
    return CpuExecutor(
        decoder, num_blocks=64, block_tokens=BLOCK_TOKENS, dtype=torch.float32, sampling_defaults=SamplingDefaults()
    )


def test_a_token_is_sampled_exactly_where_the_end_is_reached(executor: CpuExecutor) -> None:
    """A chunk that stops short of the sequence's end yields no token and, unasked, no scores."""
    whole, part = sequence([1, 2, 3], [0]), sequence([4, 5, 6], [1])
    result = executor.execute(plan([whole, part], [3, 2]))
    assert isinstance(result.token_ids[0], int)
    assert result.token_ids[1] is None
    assert list(result.scores) == [None, None]
    assert list(result.prompt_scores) == [[], []]
    assert result.step == 7
    assert result.seconds > 0


def test_prompt_scores_cover_the_rows_of_the_step(executor: CpuExecutor) -> None:
    """Chunks score positions start + 1 up to the prompt's last, each once, also across the slices logits come in."""
    length = LOGITS_ROWS + 40
    prompt = [i % 30 for i in range(length)]
    one = sequence(prompt, [0, 1, 2, 3], num_logprobs=0)
    first = executor.execute(plan([one], [LOGITS_ROWS + 20])).prompt_scores[0]
    assert [s.token_id for s in first] == prompt[1 : LOGITS_ROWS + 21]
    one.num_computed = LOGITS_ROWS + 20
    rest = executor.execute(plan([one], [20]))
    assert [s.token_id for s in rest.prompt_scores[0]] == prompt[LOGITS_ROWS + 21 :]
    assert all(s.top == [] for s in rest.prompt_scores[0])
    assert rest.scores[0] is not None


def test_a_step_never_writes_a_sequence(executor: CpuExecutor) -> None:
    """Token ids, blocks and counters are the scheduler's to change."""
    one = sequence([1, 2, 3], [0])
    executor.execute(plan([one], [3]))
    assert (one.token_ids, one.block_ids, one.num_computed) == ([1, 2, 3], [0], 0)


def test_more_rows_than_a_slice_of_logits_all_sample(executor: CpuExecutor) -> None:
    """Every sequence of a wide step gets its token, the one it gets alone."""
    many = [sequence([i % 30, 3], [i % 64]) for i in range(60)] + [sequence([i, 5], [60 + i]) for i in range(4)]
    tokens = executor.execute(plan(many, [2] * len(many))).token_ids
    assert tokens[61] == executor.execute(plan([many[61]], [2])).token_ids[0]
    assert None not in tokens


def test_memory_that_the_system_refuses_is_a_problem_with_its_size() -> None:
    """An impossible number of blocks ends in insufficient_memory and states the bytes."""
    with pytest.raises(Problem, match=r"refused 2,\d{3}(,\d{3})+ bytes") as raised:
        KvPages(PageShape(1, num_blocks=1 << 44, block_tokens=32, num_kv_heads=1, head_dim=1, dtype=torch.float16))
    assert raised.value.code == "insufficient_memory"


def log_softmax(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(-1).gather(1, token_ids)


def test_scores_are_log_probabilities_in_falling_order() -> None:
    """A score is the natural log-softmax of the raw logits, its alternatives the best first, as many as there are."""
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    expected = logits.log_softmax(-1)[0].tolist()
    (one,) = score(logits, [0], 2, log_softmax)
    assert one.logprob == pytest.approx(expected[0])
    assert [token_id for token_id, _ in one.top] == [1, 2]
    assert [logprob for _, logprob in one.top] == pytest.approx([expected[1], expected[2]])
    assert len(score(logits, [0], 20, log_softmax)[0].top) == 3
