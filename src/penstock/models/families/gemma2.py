"""Gemma 2 (arXiv 2408.00118): norms on both sides of each part, capped scores and logits, windows on half the layers.

Norm weights are stored less one, and embeddings are scaled by the root of the width, rounded to the model's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from penstock.models.family import COMMON_TENSORS, POST_NORM_TENSORS, Family
from penstock.models.fields import Fields
from penstock.models.layer_fields import read_head_dim, read_layers, write_windows
from penstock.models.rope_fields import read_rope
from penstock.models.traits import Traits


def _traits(fields: Fields) -> Traits:
    head_dim = read_head_dim(fields)
    attention_bias = fields.flag("attention_bias", False)
    return Traits(
        head_dim=head_dim,
        layers=read_layers(fields, read_rope(fields, head_dim), lambda index: index % 2 == 0),
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        norm="rms_plus_one",
        post_norm=True,
        attention_scale=fields.integer("query_pre_attn_scalar", 1, 1 << 20) ** -0.5,
        attention_softcap=fields.optional_number("attn_logit_softcapping", 1e-3, 1e6),
        logits_softcap=fields.optional_number("final_logit_softcapping", 1e-3, 1e6),
        embedding_scale=math.sqrt(fields.integer("hidden_size", 1, 1 << 17)),
    )


def _fields(traits: Traits) -> Mapping[str, object]:
    assert traits.attention_scale is not None
    return {
        "attention_bias": traits.qkv_bias,
        "query_pre_attn_scalar": round(traits.attention_scale**-2),
        "attn_logit_softcapping": traits.attention_softcap,
        "final_logit_softcapping": traits.logits_softcap,
        **write_windows(traits.layers),
    }


GEMMA2 = Family(
    architecture="Gemma2ForCausalLM",
    model_type="gemma2",
    traits=_traits,
    fields=_fields,
    tensors={**COMMON_TENSORS, **POST_NORM_TENSORS},
    defaults={
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
)
