"""Granite 3 (IBM): Llama with four multipliers: of embeddings, of scores, of what a layer adds and of logits."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.models.family import COMMON_TENSORS, Family
from penstock.models.fields import Fields
from penstock.models.layer_fields import read_head_dim, read_layers
from penstock.models.rope_fields import read_rope
from penstock.models.traits import Traits


def _traits(fields: Fields) -> Traits:
    head_dim = read_head_dim(fields)
    attention_bias = fields.flag("attention_bias", False)
    return Traits(
        head_dim=head_dim,
        layers=read_layers(fields, read_rope(fields, head_dim)),
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=fields.flag("mlp_bias", False),
        attention_scale=fields.number("attention_multiplier", 1e-6, 1e6),
        embedding_scale=fields.number("embedding_multiplier", 1e-6, 1e6),
        residual_scale=fields.number("residual_multiplier", 1e-6, 1e6),
        logits_scale=1 / fields.number("logits_scaling", 1e-6, 1e6),
    )


def _fields(traits: Traits) -> Mapping[str, object]:
    return {
        "attention_bias": traits.qkv_bias,
        "mlp_bias": traits.mlp_bias,
        "attention_multiplier": traits.attention_scale,
        "embedding_multiplier": traits.embedding_scale,
        "residual_multiplier": traits.residual_scale,
        "logits_scaling": 1 / traits.logits_scale,
    }


GRANITE = Family(
    architecture="GraniteForCausalLM",
    model_type="granite",
    traits=_traits,
    fields=_fields,
    tensors=COMMON_TENSORS,
    defaults={
        "attention_multiplier": 1.0,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    },
)
