"""A model and token sets small enough to train in a second."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from penstock.config.recipe import ModelRecipe, TrainingRecipe
from penstock.models.decoder import Decoder
from penstock.train.initial import initial_decoder
from penstock.train.packing import PackedRows
from penstock.train.precision import ops_for

VOCABULARY = 64


@pytest.fixture
def model_recipe() -> ModelRecipe:
    return ModelRecipe(
        architecture="Qwen3ForCausalLM",
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        hidden_size=32,
        intermediate_size=48,
        max_position=128,
    )


@pytest.fixture
def training_recipe() -> TrainingRecipe:
    return TrainingRecipe(
        steps=30,
        row_tokens=32,
        rows_per_step=8,
        learning_rate=5e-3,
        warmup_steps=5,
        precision="float32",
        checkpoint_steps=10,
        log_steps=5,
    )


@pytest.fixture
def make_decoder(model_recipe: ModelRecipe) -> Callable[..., Decoder]:
    def make(precision: str = "float32", seed: int = 1) -> Decoder:
        return initial_decoder(model_recipe, VOCABULARY, seed, ops_for(precision))

    return make


@pytest.fixture
def rows() -> PackedRows:
    """Counting texts: each token is the last one plus a step that the text keeps."""
    generator = np.random.default_rng(7)
    texts = [
        (generator.integers(VOCABULARY) + np.arange(generator.integers(4, 24)) * generator.integers(1, 4)) % VOCABULARY
        for _ in range(200)
    ]
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    mask = np.ones(offsets[-1], np.bool_)
    mask[offsets[:-1]] = False
    return PackedRows(np.concatenate(texts).astype(np.uint16), mask, offsets, row_tokens=32, seed=0)
