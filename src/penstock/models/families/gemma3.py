"""Gemma 3, text (arXiv 2503.19786): Gemma 2 with norms on queries and keys instead of caps, and windows on five of six
layers, which turn with a base of their own.  Of the larger models that also see, the text part is read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from penstock.models.family import COMMON_TENSORS, POST_NORM_TENSORS, Family, Whole
from penstock.models.fields import Fields
from penstock.models.layer_fields import read_head_dim, read_layers, write_windows
from penstock.models.rope import RopeConfig
from penstock.models.rope_fields import rope_of, write_scaling
from penstock.models.traits import Traits


def _traits(fields: Fields) -> Traits:
    head_dim = read_head_dim(fields)
    attention_bias = fields.flag("attention_bias", False)
    if fields.flag("use_bidirectional_attention", False):
        raise fields.unsupported("use_bidirectional_attention", "Only causal attention is supported.")
    full, sliding = _ropes(fields, head_dim)
    every = fields.integer("sliding_window_pattern", 1, 1 << 10)
    layers = read_layers(fields, full, lambda index: (index + 1) % every != 0)
    return Traits(
        head_dim=head_dim,
        layers=tuple(layer if layer.window is None else dataclasses.replace(layer, rope=sliding) for layer in layers),
        qk_norm="per_head",
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        norm="rms_plus_one",
        post_norm=True,
        attention_scale=fields.integer("query_pre_attn_scalar", 1, 1 << 20) ** -0.5,
        logits_softcap=fields.optional_number("final_logit_softcapping", 1e-3, 1e6),
        embedding_scale=math.sqrt(fields.integer("hidden_size", 1, 1 << 17)),
    )


def _ropes(fields: Fields, head_dim: int) -> tuple[RopeConfig, RopeConfig]:
    """Of full and of sliding layers; scaling belongs to the former alone."""
    kinds = fields.object("rope_parameters")
    if kinds is None:
        full = rope_of(fields.object("rope_scaling"), fields, head_dim)
        return full, rope_of(None, fields, head_dim, "rope_local_base_freq")
    return (
        rope_of(kinds.object("full_attention"), fields, head_dim),
        rope_of(kinds.object("sliding_attention"), fields, head_dim, "rope_local_base_freq"),
    )


def _fields(traits: Traits) -> Mapping[str, object]:
    assert traits.attention_scale is not None
    ropes = {layer.window is None: layer.rope for layer in traits.layers}
    full, sliding = ropes.get(True), ropes.get(False)
    written: dict[str, object] = {
        "attention_bias": traits.qkv_bias,
        "query_pre_attn_scalar": round(traits.attention_scale**-2),
        "final_logit_softcapping": traits.logits_softcap,
        **write_windows(traits.layers),
    }
    if full is not None:
        written |= {"rope_theta": full.theta, "rope_scaling": write_scaling(full.scaling)}
    if sliding is not None:
        written |= {"rope_local_base_freq": sliding.theta}
    return written


GEMMA3 = Family(
    architecture="Gemma3ForCausalLM",
    model_type="gemma3_text",
    traits=_traits,
    fields=_fields,
    tensors={**COMMON_TENSORS, **POST_NORM_TENSORS},
    defaults={
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
    },
    whole=Whole(
        architecture="Gemma3ForConditionalGeneration",
        section="text_config",
        prefixes={
            "language_model.model.": "model.",
            "language_model.lm_head.": "lm_head.",
            "model.language_model.": "model.",
            "language_model.": "model.",
        },
        unread=("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
    ),
)
