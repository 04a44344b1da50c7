"""Llama 2 and 3 (arXiv 2307.09288, 2407.21783): grouped queries, optional biases, no norm on queries and keys."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.models.family import COMMON_TENSORS, Family, Traits
from penstock.models.fields import Fields


def _traits(fields: Fields) -> Traits:
    hidden = fields.integer("hidden_size", 1, 1 << 17)
    heads = fields.integer("num_attention_heads", 1, 1 << 12)
    if fields.data.get("head_dim") is None and hidden % heads:
        raise fields.wrong("num_attention_heads", f"must divide hidden_size ({hidden}) when head_dim is not given")
    attention_bias = fields.flag("attention_bias", False)
    return Traits(
        head_dim=fields.integer("head_dim", 2, 1 << 12, default=hidden // heads),
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )


def _fields(traits: Traits) -> Mapping[str, object]:
    return {"head_dim": traits.head_dim, "attention_bias": traits.qkv_bias, "mlp_bias": traits.mlp_bias}


LLAMA = Family(
    architecture="LlamaForCausalLM", model_type="llama", traits=_traits, fields=_fields, tensors=COMMON_TENSORS
)
