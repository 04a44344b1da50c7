"""Llama 2 and 3 (arXiv 2307.09288, 2407.21783): grouped queries, optional biases, no norm on queries and keys."""

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
    )


def _fields(traits: Traits) -> Mapping[str, object]:
    return {"attention_bias": traits.qkv_bias, "mlp_bias": traits.mlp_bias}


LLAMA = Family(
    architecture="LlamaForCausalLM", model_type="llama", traits=_traits, fields=_fields, tensors=COMMON_TENSORS
)
