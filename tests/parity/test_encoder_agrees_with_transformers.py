"""Our encoder computes what transformers computes from the same files; a packed batch, what each text gives alone."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoder import VOCAB_SIZE, write_tiny_encoder
from torch import Tensor
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel, XLMRobertaConfig, XLMRobertaModel

from penstock.engine.cpu.encoder import EncoderExecutor
from penstock.engine.sequence import Pooling, Sequence, StepPlan
from penstock.models.encoder import Encoder
from penstock.models.encoder_checkpoint import load_encoder
from penstock.sim.clock import VirtualClock
from penstock.sim.replay import Recorder
from penstock.wire.engine import Sampling

FP32_BOUND = 1e-5
# Hidden states are of size 1 to 3, so that bf16 rounds them by up to 0.008; measured here: 0.044 after three layers.
BF16_BOUND = 0.1
SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 70,
}
CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert": (BertModel, BertConfig, {}),
    "bert-one-type": (BertModel, BertConfig, {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "roberta": (RobertaModel, RobertaConfig, {"type_vocab_size": 1, "pad_token_id": 1}),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig, {"type_vocab_size": 1, "pad_token_id": 1}),
}


def make_checkpoint(case: str, directory: Path) -> Any:
    """A random checkpoint that transformers wrote, with biases and norms that are not their neutral values."""
    model_class, config_class, fields = CASES[case]
    torch.manual_seed(3)
    model: Any = model_class(config_class(**(SIZES | fields))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "LayerNorm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(directory)
    return model


def text_of(length: int, seed: int = 0, vocab: int = 99) -> list[int]:
    return torch.randint(2, vocab, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def hidden(encoder: Encoder, texts: list[list[int]]) -> list[Tensor]:
    with torch.inference_mode():
        lengths = [len(text) for text in texts]
        return list(encoder(torch.tensor(list(itertools.chain(*texts))), lengths).split(lengths))


@pytest.mark.parametrize("case", CASES)
def test_a_padding_token_that_a_text_spells_is_where_the_reference_has_it(case: str, tmp_path: Path) -> None:
    """RoBERTa counts no position for it and BERT does; texts beside it are not moved."""
    reference = make_checkpoint(case, tmp_path)
    padding = CASES[case][2].get("pad_token_id", 0)
    texts = [[5, padding, 6, 7], [8, 9, 10, 11], [padding, padding, 12]]
    for found, text in zip(hidden(load_encoder(tmp_path), texts), texts, strict=True):
        with torch.inference_mode():
            expected = reference(torch.tensor([text]), attention_mask=torch.ones(1, len(text))).last_hidden_state[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=FP32_BOUND)


@pytest.mark.parametrize("case", CASES)
def test_float32_hidden_states_agree(case: str, tmp_path: Path) -> None:
    """From the longest text to a single token, hidden states differ by less than FP32_BOUND."""
    reference = make_checkpoint(case, tmp_path)
    encoder = load_encoder(tmp_path)
    assert encoder.config.dtype == "float32"
    for length in (encoder.config.max_position, 17, 1):
        text = text_of(length, length)
        with torch.inference_mode():
            expected = reference(torch.tensor([text])).last_hidden_state[0]
        torch.testing.assert_close(hidden(encoder, [text])[0], expected, rtol=0, atol=FP32_BOUND)


def test_bfloat16_stays_within_its_bound(tmp_path: Path) -> None:
    """In bf16 hidden states differ from float32's by less than BF16_BOUND, and no more than transformers' own do."""
    make_checkpoint("bert", tmp_path)
    text = text_of(40)
    exact = hidden(load_encoder(tmp_path, "float32"), [text])[0]
    ours = (hidden(load_encoder(tmp_path, "bfloat16"), [text])[0].float() - exact).abs()
    reference: Any = BertModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    with torch.inference_mode():
        theirs = (reference.eval()(torch.tensor([text])).last_hidden_state[0].float() - exact).abs()
    assert ours.max() < BF16_BOUND
    assert ours.mean() < 1.25 * theirs.mean()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    directory = tmp_path_factory.mktemp("tiny")
    write_tiny_encoder(directory)
    return load_encoder(directory)


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.one_of(st.integers(1, 60), st.sampled_from([3, 7])), min_size=1, max_size=12))
def test_company_does_not_matter(lengths: list[int], tiny: Encoder) -> None:
    """Whatever texts a batch is packed from, each has the hidden states that it has alone, and its own vector."""
    texts = [text_of(length, seed, VOCAB_SIZE) for seed, length in enumerate(lengths)]
    alone = [hidden(tiny, [text])[0] for text in texts]
    for together, expected in zip(hidden(tiny, texts), alone, strict=True):
        torch.testing.assert_close(together, expected, rtol=0, atol=FP32_BOUND)
    result = EncoderExecutor(tiny).execute(plan_of(texts))
    for index, expected in enumerate(alone):
        vector = torch.frombuffer(bytearray(result.pooled[index] or b""), dtype=torch.float32)
        torch.testing.assert_close(vector, expected.mean(0), rtol=0, atol=FP32_BOUND)


def plan_of(texts: list[list[int]]) -> StepPlan:
    sequences = [
        Sequence(
            id=str(index),
            token_ids=text,
            num_prompt_tokens=len(text),
            max_tokens=0,
            sampling=Sampling(seed=0),
            sink=Recorder(VirtualClock(), 0.0),
            pooling=Pooling("mean", normalize=False),
        )
        for index, text in enumerate(texts)
    ]
    nothing = [0] * len(texts)
    return StepPlan(1, sequences, nothing, [len(text) for text in texts], nothing, 0)
