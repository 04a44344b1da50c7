"""In exact mode a request's tokens and log-probabilities are the same bits whatever happens around it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from penstock.engine.cpu.defaults import SamplingDefaults
from penstock.engine.cpu.exact_attention import ExactAttention
from penstock.engine.cpu.executor import CpuExecutor
from penstock.engine.kv_cache import BlockPool
from penstock.engine.loop import Loop
from penstock.engine.prefix import prefix_root
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import Sequence, StepPlan, TokenScore
from penstock.events.list import Event, StepDone
from penstock.models.attention import packed_causal, packed_positions
from penstock.models.config import ModelConfig
from penstock.models.decoder import Decoder
from penstock.models.exact.attention import packed_exact
from penstock.models.exact.ops import EXACT
from penstock.models.linear import Linear, StackedLinear
from penstock.models.low_rank import Adapter, LowRank
from penstock.policy.batch import BatchRules
from penstock.train.precision import mixed
from penstock.wire.engine import FinishReason, Sampling
from penstock.wire.errors import Problem

VOCAB = 67
BLOCK_TOKENS = 4
SIZES: dict[str, Any] = {
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "hidden_size": 36,
    "intermediate_size": 50,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": {"architectures": ["Qwen3ForCausalLM"]},
    "llama-biases": {"architectures": ["LlamaForCausalLM"], "attention_bias": True, "mlp_bias": True},
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 9,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 20.0,
        "final_logit_softcapping": 10.0,
        "tie_word_embeddings": True,
    },
    "qwen3-moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 22,
        "norm_topk_prob": True,
    },
}
DTYPES = ["float32", "bfloat16"]


@cache
def decoder_of(model: str, dtype: str) -> Decoder:
    """A random decoder over the exact table, with every parameter away from its neutral value."""
    with TemporaryDirectory() as directory:
        text = json.dumps({**SIZES, **MODELS[model], "torch_dtype": dtype})
        Path(directory, "config.json").write_text(text)
        decoder = Decoder(ModelConfig.from_directory(Path(directory)), EXACT)
    source = torch.Generator().manual_seed(len(model))
    with torch.no_grad():
        for parameter in decoder.parameters():
            centre = 1.0 if parameter.dim() == 1 else 0.0
            parameter.copy_(centre + torch.randn(parameter.shape, generator=source) * 0.3)
    return decoder


@cache
def adapters_of(model: str, dtype: str) -> list[Adapter | None]:
    """Nobody's, one of every linear, and one of another rank of some."""
    decoder, source = decoder_of(model, dtype), torch.Generator().manual_seed(3)

    def change(linear: Linear, rank: int) -> LowRank:
        rows, inputs = linear.weight.shape
        down, up = (torch.randn(rank, size, generator=source).to(linear.weight.dtype) * 0.2 for size in (inputs, rows))
        return LowRank(0, down, up)

    linears = [m for m in decoder.modules() if isinstance(m, Linear) and not isinstance(m, StackedLinear)]
    every = Adapter("every", 16, {linear: (change(linear, 16),) for linear in linears})
    some = Adapter("some", 32, {linear: (change(linear, 32),) for linear in linears[::3]})
    return [None, every, some]


@dataclass(frozen=True)
class Asked:
    """A request as traffic brings it."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    adapter: Adapter | None = None


@dataclass
class Said:
    """What a request got: a sink."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[list[tuple[int, float]]] = field(default_factory=list)
    prompt: list[float] = field(default_factory=list)
    ended: str = ""

    def prompt_scored(self, scores: list[TokenScore]) -> None:
        self.prompt += [score.logprob for score in scores]

    def push(self, token_id: int, score: TokenScore | None) -> bool:
        assert score is not None
        self.token_ids.append(token_id)
        self.logprobs.append(score.logprob)
        self.tops.append(score.top)
        return False

    def finish(self, reason: FinishReason, stop_token_id: int | None, num_cached_tokens: int) -> None:
        self.ended = reason

    def fail(self, problem: Problem) -> None:
        raise problem


class Engine:
    """The production loop over the exact executor, with as much memory and step as the test says."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        num_blocks: int = 64,
        max_step_tokens: int = 512,
        speculative_tokens: int = 0,
        draft: Decoder | None = None,
    ) -> None:
        rules = BatchRules(
            max_step_tokens=max_step_tokens,
            max_num_seqs=8,
            block_tokens=BLOCK_TOKENS,
            speculative_tokens=speculative_tokens,
            drafts=draft is not None,
        )
        self.events: list[Event] = []
        self.loop = Loop(Scheduler(rules, BlockPool(num_blocks)), self.events.append)
        self.executor = CpuExecutor(
            decoder,
            num_blocks=num_blocks,
            block_tokens=BLOCK_TOKENS,
            dtype=decoder.config.torch_dtype,
            sampling_defaults=SamplingDefaults(),
            attention=ExactAttention,
            draft=draft,
        )
        self._count = 0

    def submit(self, asked: Asked, said: Said, *, score_prompt: bool = False) -> str:
        """Take a request, from what ``said`` has of it on."""
        self._count += 1
        sequence = Sequence(
            id=f"s{self._count}",
            token_ids=[*asked.prompt, *said.token_ids],
            num_prompt_tokens=len(asked.prompt),
            max_tokens=asked.max_tokens,
            sampling=asked.sampling,
            sink=said,
            num_logprobs=3,
            score_prompt=score_prompt,
            adapter=asked.adapter,
            prefix_root=prefix_root(adapter=asked.adapter.digest if asked.adapter else ""),
        )
        self.loop.submit(sequence)
        return sequence.id

    def step(self) -> bool:
        plan = self.loop.plan()
        if plan is not None:
            self.compute(plan)
        return plan is not None

    def compute(self, plan: StepPlan) -> None:
        result = self.executor.execute(plan)
        # As if rows were cheap, so that whether speculation pays does not depend on who else uses this machine.
        draft_s = 1e-5 * sum(draft.num_rows + draft.num_proposed for draft in plan.drafts.values())
        seconds = 0.01 + 1e-5 * plan.num_tokens + draft_s
        self.loop.commit(plan, replace(result, seconds=seconds, draft_s=draft_s))


def alone(decoder: Decoder, asked: Asked) -> Said:
    """The request in an engine of its own, its prompt in one chunk."""
    engine, said = Engine(decoder), Said()
    engine.submit(asked, said)
    while engine.step():
        pass
    return said


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def requests(dice: random.Random, count: int, adapters: list[Adapter | None]) -> list[Asked]:
    """Requests that share beginnings, greedy and drawn, with adapters and without, each of which fits alone into 16
    blocks.
    """
    beginnings = [tuple(dice.randrange(VOCAB) for _ in range(20)) for _ in range(2)]
    asked = []
    for seed in range(count):
        prompt = dice.choice(beginnings)[: dice.randint(0, 20)]
        prompt += tuple(dice.randrange(VOCAB) for _ in range(dice.randint(1, 20)))
        sampling = Sampling(
            seed=seed,
            temperature=dice.choice([0.0, 0.7, 1.0, 1.5]),
            top_p=dice.choice([None, 0.9]),
            top_k=dice.choice([None, 20]),
            presence_penalty=dice.choice([0.0, 0.5]),
        )
        asked.append(Asked(prompt, dice.randint(1, 63 - len(prompt)), sampling, dice.choice(adapters)))
    return asked


def check_traffic(model: str, dtype: str, seed: int) -> None:
    """Batches, chunks, prefix hits, proposals, preemptions, aborts, resumes elsewhere: each gets what it gets alone."""
    torch.set_num_threads(1 + seed % 2)  # with two, work is cut into parts, which must not show either
    dice = random.Random(seed)
    decoder = decoder_of(model, dtype)
    asked = requests(dice, 7, adapters_of(model, dtype))
    said = [Said() for _ in asked]
    engines = [
        Engine(
            decoder,
            num_blocks=dice.randint(16, 28),
            max_step_tokens=dice.randint(3, 40),
            speculative_tokens=most,
            draft=decoder if most and seed % 2 else None,
        )
        for most in (0, 6)
    ]
    arriving = list(range(len(asked)))
    running: dict[tuple[int, str], int] = {}
    while arriving or running:
        if arriving and dice.random() < 0.3:
            which = arriving.pop()
            at = dice.randrange(2)
            running[at, engines[at].submit(asked[which], said[which])] = which
        for at, engine in enumerate(engines):
            engine.step()
            for key in [key for key, which in running.items() if key[0] == at and said[which].ended == "length"]:
                del running[key]
        if running and dice.random() < 0.1:  # an engine loses a request, the other one goes on with it
            at, sequence_id = dice.choice(list(running))
            which = running.pop((at, sequence_id))
            engines[at].loop.abort(sequence_id)
            said[which].ended = ""
            running[1 - at, engines[1 - at].submit(asked[which], said[which])] = which
    for request, got in zip(asked, said, strict=True):
        assert got == alone(decoder, request)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", MODELS)
def test_random_traffic_changes_no_bit(model: str, dtype: str, seed: int) -> None:
    """Whatever happens around a request, it gets the tokens and log-probabilities that it gets alone."""
    check_traffic(model, dtype, seed)


def speculated_and_not(decoder: Decoder, draft: Decoder | None) -> tuple[int, int]:
    """Requests that repeat themselves get the same bits by speculation and one by one, however they are sampled.

    How many tokens were proposed, and how many were right.
    """
    few = dict.fromkeys(range(4), 40.0)
    samplings = [
        Sampling(seed=1, temperature=0.0),
        Sampling(seed=2, temperature=1.0, logit_bias=few),
        Sampling(seed=3, temperature=0.3, top_p=0.8, top_k=5, min_p=0.1),
        Sampling(seed=4, temperature=0.7, logit_bias=few, presence_penalty=0.5, frequency_penalty=0.2),
        Sampling(seed=5, temperature=0.0, repetition_penalty=1.1, logit_bias=few),
    ]
    asked = [Asked((1, 2, 3, 0, 2, 1, 2, 3, 0), 100, sampling) for sampling in samplings]
    said = []
    for most in (0, 6):
        engine = Engine(decoder, num_blocks=256, speculative_tokens=most, draft=draft if most else None)
        got = [Said() for _ in asked]
        for request, sink in zip(asked, got, strict=True):
            engine.submit(request, sink)
        while engine.step():
            pass
        said.append(got)
    assert said[0] == said[1]
    steps = [event for event in engine.events if isinstance(event, StepDone)]
    return sum(event.proposed_tokens for event in steps), sum(event.accepted_tokens for event in steps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", MODELS)
def test_speculation_by_look_up_changes_no_bit(model: str, dtype: str) -> None:
    """Tokens and log-probabilities are the same, where some proposals are right and some are wrong."""
    proposed, accepted = speculated_and_not(decoder_of(model, dtype), None)
    assert proposed > accepted > 50


@pytest.mark.parametrize("model", MODELS)
def test_speculation_by_another_model_changes_no_bit(model: str) -> None:
    """A draft model that knows nothing of the large one is hardly ever right, and changes nothing."""
    other = next(name for name in MODELS if name != model)
    proposed, accepted = speculated_and_not(decoder_of(model, "float32"), decoder_of(other, "bfloat16"))
    assert proposed > 2 * accepted


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", MODELS)
def test_a_model_that_drafts_for_itself_is_always_right(model: str, dtype: str) -> None:
    """Greedy and drawn: its keys and values are kept in step, and it draws by the same rules and the same numbers."""
    decoder = decoder_of(model, dtype)
    proposed, accepted = speculated_and_not(decoder, decoder)
    assert proposed == accepted > 300


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", MODELS)
def test_much_random_traffic_changes_no_bit(model: str, dtype: str) -> None:
    """The same over 25 more seeds."""
    for seed in range(100, 125):
        check_traffic(model, dtype, seed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", MODELS)
def test_the_training_forward_has_the_same_bits(model: str, dtype: str) -> None:
    """A trainer that packs the finished sequences, with gradients on, finds the engine's log-probabilities exactly."""
    decoder = decoder_of(model, dtype)
    asked = requests(random.Random(5), 4, [None])
    engine, said = Engine(decoder, max_step_tokens=11), [Said() for _ in asked]
    for request, got in zip(asked, said, strict=True):
        engine.submit(request, got, score_prompt=True)
    while engine.step():
        pass

    texts = [[*request.prompt, *got.token_ids] for request, got in zip(asked, said, strict=True)]
    lengths = [len(text) for text in texts]
    token_ids = torch.tensor([token for text in texts for token in text])
    hidden = decoder(token_ids, packed_positions(lengths), packed_exact(lengths))
    assert hidden.requires_grad
    targets = token_ids.roll(-1)[:, None]
    trained = decoder.log_probabilities(decoder.logits(hidden), targets)[:, 0]
    for part, got in zip(trained.detach().split(lengths), said, strict=True):
        assert part[:-1].tolist() == got.prompt + got.logprobs


@pytest.mark.parametrize("model", MODELS)
def test_float32_weights_train_for_a_bfloat16_engine(model: str) -> None:
    """A trainer that keeps float32 weights and computes in bfloat16 has the bits of the engine that it publishes to."""
    published = decoder_of(model, "bfloat16")
    trainer = Decoder(decoder_of(model, "float32").config, mixed(EXACT, torch.bfloat16))
    with torch.no_grad():
        for kept, rounded in zip(trainer.parameters(), published.parameters(), strict=True):
            kept.copy_(rounded)
            kept.mul_(1.0 + 2.0**-12)  # less than half a unit in bfloat16's last place
    token_ids = torch.arange(40)
    trained, served = (
        decoder.logits(decoder(token_ids, packed_positions([15, 25]), packed_exact([15, 25])))
        for decoder in (trainer, published)
    )
    assert trained.requires_grad
    assert torch.equal(trained, served)


@pytest.mark.parametrize("model", MODELS)
def test_the_exact_table_computes_the_same_model(model: str) -> None:
    """The exact table's log-probabilities are the reference table's, up to float32's rounding."""
    exact = decoder_of(model, "float32")
    reference = Decoder(exact.config)
    reference.load_state_dict(exact.state_dict())
    token_ids = torch.arange(60)
    with torch.inference_mode():
        ours, theirs = (
            decoder.logits(decoder(token_ids, packed_positions([60]), attend([60]))).log_softmax(-1)
            for decoder, attend in ((exact, packed_exact), (reference, packed_causal))
        )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_draft_model_computes_a_shared_beginning_once() -> None:
    """A second request with the same beginning is drafted for from the blocks that the first one left."""
    decoder = decoder_of(next(iter(MODELS)), "float32")
    engine = Engine(decoder, num_blocks=64, speculative_tokens=6, draft=decoder)
    prompt = tuple(i % VOCAB for i in range(41))
    starts = []
    for _ in range(2):
        said = Said()
        engine.submit(Asked(prompt, 40, Sampling(seed=1, temperature=0.0), None), said)
        first = None
        while (plan := engine.loop.plan()) is not None:
            if first is None and plan.drafts:
                first = plan.drafts[0].start
            engine.compute(plan)
        starts.append(first)
    assert starts == [0, (len(prompt) - 1) // BLOCK_TOKENS * BLOCK_TOKENS]
