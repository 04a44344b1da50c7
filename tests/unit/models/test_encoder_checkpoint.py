"""Encoders' checkpoints: what is read, what is refused and with which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_encoder import CONFIG, NUM_POSITIONS, write_tiny_encoder

from penstock.models.encoder_checkpoint import load_encoder
from penstock.models.encoder_config import EncoderConfig, is_encoder
from penstock.wire.errors import Problem


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_tiny_encoder(tmp_path / "model")
    return tmp_path / "model"


def edit_config(directory: Path, **changes: Any) -> None:
    (directory / "config.json").write_text(json.dumps(CONFIG | changes))


def edit_tensors(directory: Path, changes: dict[str, Any], missing: str = "") -> None:
    tensors = safetensors.torch.load_file(directory / "model.safetensors") | changes
    safetensors.torch.save_file({n: t for n, t in tensors.items() if n != missing}, directory / "model.safetensors")


def refusal(directory: Path) -> Problem:
    with pytest.raises(Problem) as caught:
        load_encoder(directory)
    return caught.value


def test_queries_keys_and_values_are_one_parameter(directory: Path) -> None:
    """The fused parameter has the three matrices one below the other."""
    stored, encoder = safetensors.torch.load_file(directory / "model.safetensors"), load_encoder(directory)
    parts = [stored[f"encoder.layer.1.attention.self.{name}.weight"] for name in ("query", "key", "value")]
    assert torch.equal(encoder.get_parameter("layers.1.qkv.weight"), torch.cat(parts))


@pytest.mark.parametrize(("stated", "computed"), [("float16", "float32"), ("float32", "float32"), (None, "float32")])
def test_half_precision_is_widened(directory: Path, stated: str | None, computed: str) -> None:
    """An encoder stored in float16 is computed in float32: bf16 would cut its digits."""
    edit_config(directory, torch_dtype=stated)
    assert EncoderConfig.from_directory(directory).dtype == computed


def test_an_asked_dtype_is_taken(directory: Path) -> None:
    """--dtype bfloat16 computes in bf16 whatever the files hold."""
    assert {parameter.dtype for parameter in load_encoder(directory, "bfloat16").parameters()} == {torch.bfloat16}


def test_roberta_counts_positions_from_behind_the_padding_token(directory: Path) -> None:
    """Of its positions, the padding token's id and those before it serve no token."""
    edit_config(directory, architectures=["XLMRobertaModel"], pad_token_id=1)
    config = EncoderConfig.from_directory(directory)
    assert (config.first_position, config.max_position) == (2, NUM_POSITIONS - 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_act", "relu"),
        ("hidden_act", "gelu_new"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("quantization_config", {"bits": 8}),
        ("torch_dtype", "float8"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(directory: Path, field: str, value: Any) -> None:
    """A field that asks for another network is named with its value."""
    edit_config(directory, **{field: value})
    problem = refusal(directory)
    assert (problem.code, problem.param) == ("checkpoint_unsupported", field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_attention_heads", 5),
        ("num_attention_heads", 0),
        ("hidden_size", "32"),
        ("num_hidden_layers", None),
        ("layer_norm_eps", "small"),
    ],
)
def test_absurd_sizes_are_refused_by_name(directory: Path, field: str, value: Any) -> None:
    """A field of the wrong kind or range is named before anything is allocated."""
    edit_config(directory, **{field: value})
    problem = refusal(directory)
    assert (problem.code, problem.param) == ("checkpoint_invalid", field)


def test_sizes_that_do_not_fit_the_files_are_refused(directory: Path) -> None:
    """A vocabulary other than the tensor's is refused with both shapes."""
    edit_config(directory, vocab_size=7)
    assert "embeddings.word_embeddings.weight" in refusal(directory).message


def test_a_missing_tensor_is_named(directory: Path) -> None:
    """An encoder without one of its matrices is refused."""
    edit_tensors(directory, {}, missing="encoder.layer.0.output.dense.bias")
    assert "encoder.layer.0.output.dense.bias is missing" in refusal(directory).message


def test_a_learnt_surplus_is_refused_and_the_pooler_is_not(directory: Path) -> None:
    """The pooler of next-sentence prediction and old positions are no surplus; another learnt tensor is."""
    edit_tensors(directory, {"embeddings.position_ids": torch.arange(NUM_POSITIONS)[None]})
    load_encoder(directory)
    edit_tensors(directory, {"encoder.layer.0.adapter.weight": torch.zeros(2, 2)})
    assert "encoder.layer.0.adapter.weight" in refusal(directory).message


@pytest.mark.parametrize("architectures", [None, [], "BertModel", ["Qwen3ForCausalLM"], ["BertModel", "BertModel"]])
def test_only_an_encoder_s_name_makes_an_encoder(directory: Path, architectures: Any) -> None:
    """Whatever else config.json names is the decoders' to read or to refuse."""
    edit_config(directory, architectures=architectures)
    assert not is_encoder(directory)
