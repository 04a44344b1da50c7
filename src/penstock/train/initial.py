"""The first weights of a decoder.

In: a recipe's model, a vocabulary and a seed; out: a float32 decoder, the same bits for the same seed.
"""

from __future__ import annotations

import math

import torch

from penstock.config.recipe import ModelRecipe
from penstock.models.config import ModelConfig
from penstock.models.decoder import Decoder
from penstock.models.ops import Ops
from penstock.models.rope import RopeConfig
from penstock.models.traits import LayerSpec


def model_config(recipe: ModelRecipe, vocab_size: int) -> ModelConfig:
    """What the recipe's model is called in our words.  float32: what is trained are the master weights."""
    return ModelConfig(
        architecture=recipe.architecture,
        layers=(LayerSpec(RopeConfig(recipe.rope_theta)),) * recipe.num_layers,
        num_heads=recipe.num_heads,
        num_kv_heads=recipe.num_kv_heads,
        head_dim=recipe.head_dim,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        vocab_size=vocab_size,
        max_position=recipe.max_position,
        norm_eps=recipe.norm_eps,
        tie_embeddings=recipe.tie_embeddings,
        qk_norm="per_head" if recipe.architecture == "Qwen3ForCausalLM" else None,
        dtype="float32",
    )


def initial_decoder(recipe: ModelRecipe, vocab_size: int, seed: int, ops: Ops) -> Decoder:
    """Normal weights of ``init_std``; those that write into the residual stream shrink with the depth (GPT-2)."""
    decoder = Decoder(model_config(recipe, vocab_size), ops)
    generator = torch.Generator().manual_seed(seed)
    into_residual = recipe.init_std / math.sqrt(2 * recipe.num_layers)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            else:
                std = into_residual if name.endswith(("output.weight", "down.weight")) else recipe.init_std
                parameter.normal_(0.0, std, generator=generator)
    return decoder
