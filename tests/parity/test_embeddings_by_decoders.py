"""A decoder's embedding is what transformers' hidden states give, along every path through the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seeded import write_seeded_checkpoint
from torch import Tensor
from transformers import AutoModel

from penstock.engine.cpu.defaults import SamplingDefaults
from penstock.engine.cpu.exact_attention import ExactAttention
from penstock.engine.cpu.executor import CpuExecutor
from penstock.engine.cpu.fast_attention import make_attention
from penstock.engine.kv_cache import BlockPool
from penstock.engine.loop import Loop
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import Pooling, Sequence
from penstock.models.exact.ops import EXACT
from penstock.models.load import load_decoder
from penstock.models.ops import REFERENCE
from penstock.policy.batch import BatchRules
from penstock.sim.clock import VirtualClock
from penstock.sim.replay import Recorder
from penstock.store.sources import BUNDLED
from penstock.wire.engine import Sampling

FP32_BOUND = 1e-5
ROWS = ["cls", "last", "mean"]


class Engine:
    """A decoder behind a loop; ``step_tokens`` and ``num_blocks`` make prompts come in parts or be preempted."""

    def __init__(self, directory: Path, *, step_tokens: int = 512, num_blocks: int = 64, exact: bool = False) -> None:
        decoder = load_decoder(directory, "float32", ops=EXACT if exact else REFERENCE).requires_grad_(False)
        self.executor = CpuExecutor(
            decoder,
            num_blocks=num_blocks,
            block_tokens=4,
            dtype=torch.float32,
            sampling_defaults=SamplingDefaults(),
            attention=ExactAttention if exact else make_attention,
        )
        rules = BatchRules(max_step_tokens=step_tokens, max_num_seqs=16, block_tokens=4)
        self.loop = Loop(Scheduler(rules, BlockPool(num_blocks)), lambda event: None)

    def submit(self, token_ids: list[int], pooling: Pooling | None = None, max_tokens: int = 0) -> Sequence:
        recorder = Recorder(VirtualClock(), 0.0)
        sampling = Sampling(seed=1, temperature=0.0)
        name = f"{id(recorder)}"
        sequence = Sequence(name, list(token_ids), len(token_ids), max_tokens, sampling, recorder, pooling=pooling)
        self.loop.submit(sequence)
        return sequence

    def run(self) -> None:
        while (plan := self.loop.plan()) is not None:
            self.loop.commit(plan, self.executor.execute(plan))


def reference(directory: Path) -> Any:
    return AutoModel.from_pretrained(directory, dtype=torch.float32).eval()


def expected(model: Any, token_ids: list[int], rows: str) -> Tensor:
    with torch.inference_mode():
        hidden = model(torch.tensor([token_ids])).last_hidden_state[0]
    state = {"cls": hidden[0], "last": hidden[-1], "mean": hidden.mean(0)}[rows]
    return torch.nn.functional.normalize(state, dim=0)


def found(sequence: Sequence) -> Tensor:
    assert sequence.pooled is not None
    return torch.frombuffer(bytearray(sequence.pooled), dtype=torch.float32)


def text_of(length: int, seed: int) -> list[int]:
    return torch.randint(32, 127, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("seeded") / "model"
    write_seeded_checkpoint(directory)
    return directory


@pytest.fixture(scope="module")
def model(seeded: Path) -> Any:
    return reference(seeded)


@pytest.mark.parametrize("rows", ROWS)
def test_the_bundled_model_embeds_as_in_transformers(rows: Any) -> None:
    """The checkpoint that ships, over a prompt in parts: vectors agree within FP32_BOUND."""
    engine = Engine(BUNDLED, step_tokens=7)
    token_ids = text_of(40, 1)
    sequence = engine.submit(token_ids, Pooling(rows))
    engine.run()
    torch.testing.assert_close(found(sequence), expected(reference(BUNDLED), token_ids, rows), rtol=0, atol=FP32_BOUND)


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    step_tokens=st.integers(3, 40),
    rows=st.sampled_from(ROWS),
)
def test_parts_and_company_do_not_matter(
    lengths: list[int], step_tokens: int, rows: Any, seeded: Path, model: Any
) -> None:
    """However prompts are cut, beside whatever other texts and a stream that decodes, vectors are the reference's."""
    engine = Engine(seeded, step_tokens=step_tokens)
    stream = engine.submit(text_of(9, 99), max_tokens=12)
    texts = [text_of(length, seed) for seed, length in enumerate(lengths)]
    sequences = [engine.submit(text, Pooling(rows)) for text in texts]
    engine.run()
    for sequence, text in zip(sequences, texts, strict=True):
        torch.testing.assert_close(found(sequence), expected(model, text, rows), rtol=0, atol=FP32_BOUND)
    alone = Engine(seeded)
    undisturbed = alone.submit(text_of(9, 99), max_tokens=12)
    alone.run()
    assert stream.token_ids == undisturbed.token_ids


@pytest.mark.parametrize("rows", ROWS)
def test_exact_mode_changes_no_bit_of_a_vector(rows: Any, seeded: Path) -> None:
    """In exact mode a text in parts, in company and from the cache has the bits that it has alone in one step."""
    texts = [text_of(length, seed) for seed, length in enumerate((31, 5, 18, 1))]
    alone = []
    for text in texts:
        engine = Engine(seeded, exact=True)
        alone.append(engine.submit(text, Pooling(rows)))
        engine.run()
    together = Engine(seeded, step_tokens=7, exact=True)
    for _ in range(2):
        together.submit(text_of(9, 99), max_tokens=12)
        sequences = [together.submit(text, Pooling(rows)) for text in texts]
        together.run()
        assert [sequence.pooled for sequence in sequences] == [sequence.pooled for sequence in alone]


@pytest.mark.parametrize("rows", ROWS)
def test_a_cached_prefix_changes_no_vector(rows: Any, seeded: Path, model: Any) -> None:
    """After a text with the same beginning, a vector is the same, taken from the cache where that can be."""
    engine = Engine(seeded)
    first = text_of(30, 1)
    second = [*first[:20], *text_of(13, 2)]
    engine.submit(first, Pooling("last"))
    engine.run()
    sequence = engine.submit(second, Pooling(rows))
    engine.run()
    assert sequence.num_cached == (20 if rows == "last" else 0)
    torch.testing.assert_close(found(sequence), expected(model, second, rows), rtol=0, atol=FP32_BOUND)


@pytest.mark.parametrize("rows", ROWS)
def test_a_preempted_text_has_its_vector(rows: Any, seeded: Path, model: Any) -> None:
    """A text whose blocks are taken away in the middle is computed again, and nothing of it counts twice."""
    engine = Engine(seeded, step_tokens=6, num_blocks=20)
    streams = [engine.submit(text_of(2, seed), max_tokens=30) for seed in range(4)]
    token_ids = text_of(38, 4)
    sequence = engine.submit(token_ids, Pooling(rows))
    engine.run()
    assert [stream.num_output_tokens for stream in streams] == [30] * 4
    assert sequence.epoch > 0, "nothing was preempted, so nothing was tested"
    torch.testing.assert_close(found(sequence), expected(model, token_ids, rows), rtol=0, atol=FP32_BOUND)
