"""Booting an encoder: what it serves by default, and what of a checkpoint or a setting is refused before it loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_encoder import CONTEXT, HIDDEN, NUM_POSITIONS, VOCAB_SIZE, write_tiny_encoder

from penstock.cli.boot import boot
from penstock.config.settings import EngineSettings
from penstock.engine.sequence import Pooling
from penstock.engine.server.booted import Booted
from penstock.wire.errors import Problem


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_tiny_encoder(tmp_path / "model", rows="cls", normalize=False)
    return tmp_path / "model"


def booted(directory: Path, **settings: Any) -> Booted:
    return boot(
        EngineSettings(replica="r", socket="s", model_dir=str(directory), served_name="m", **settings),
        lambda share, words: None,
    )


def refusal(directory: Path, **settings: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        booted(directory, **settings)
    return caught.value


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_the_files_decide_pooling_and_length(directory: Path) -> None:
    """Pooling, normalisation and context are those of the files beside the weights; there is no KV memory."""
    engine = booted(directory)
    assert engine.pooling == Pooling("cls", normalize=False)
    assert (engine.context_tokens, engine.embedding_size, engine.kv_bytes) == (CONTEXT, HIDDEN, 0)
    assert not engine.generates


def test_a_longer_context_can_be_asked_for(directory: Path) -> None:
    """--max-model-len goes up to the positions that there are, and a step always takes one text of that length."""
    engine = booted(directory, max_model_len=NUM_POSITIONS, max_step_tokens=8)
    assert engine.context_tokens == engine.loop.scheduler.rules.max_step_tokens == NUM_POSITIONS
    assert refusal(directory, max_model_len=NUM_POSITIONS + 1).param == "max_model_len"


def test_a_recommendation_beyond_the_positions_is_cut_to_them(directory: Path) -> None:
    """Files that recommend more tokens than the model has positions for do not make it index beyond them."""
    edit(directory / "sentence_bert_config.json", max_seq_length=1_000_000)
    assert booted(directory).context_tokens == NUM_POSITIONS


def test_a_tokenizer_of_another_model_is_refused(directory: Path) -> None:
    """Token ids that the embedding has no rows for would end a step; the start says so instead."""
    tensors = safetensors.torch.load_file(directory / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    safetensors.torch.save_file(tensors | {name: tensors[name][:50].clone()}, directory / "model.safetensors")
    edit(directory / "config.json", vocab_size=50)
    problem = refusal(directory)
    assert problem.code == "checkpoint_invalid"
    assert f"ids up to {VOCAB_SIZE - 1}" in problem.message and "50 rows" in problem.message


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused(directory: Path, value: float) -> None:
    """A NaN in the files is found at the start, with the tensor's name."""
    tensors = safetensors.torch.load_file(directory / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    tensors[name][3, 4] = value
    safetensors.torch.save_file(tensors, directory / "model.safetensors")
    problem = refusal(directory)
    assert problem.code == "checkpoint_invalid" and name in problem.message


def test_an_unknown_architecture_hears_of_the_encoders_too(directory: Path) -> None:
    """The list of what is supported has both kinds of model."""
    edit(directory / "config.json", architectures=["DistilBertModel"])
    assert "BertModel" in refusal(directory).message.partition("Supported:")[2]


def test_exact_mode_is_not_for_encoders(directory: Path) -> None:
    """A promise that is not kept is not given."""
    assert refusal(directory, exact=True).param == "exact"
