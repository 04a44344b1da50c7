"""Qwen3, dense (arXiv 2505.09388): RMSNorm on each head of queries and keys; a head size that stands alone."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.models.family import COMMON_TENSORS, Family, Traits
from penstock.models.fields import Fields


def _traits(fields: Fields) -> Traits:
    attention_bias = fields.flag("attention_bias", False)
    return Traits(
        head_dim=fields.integer("head_dim", 2, 1 << 12, default=128),
        qk_norm=True,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
    )


def _fields(traits: Traits) -> Mapping[str, object]:
    return {"head_dim": traits.head_dim, "attention_bias": traits.qkv_bias, "use_sliding_window": False}


QWEN3 = Family(
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    traits=_traits,
    fields=_fields,
    tensors={
        **COMMON_TENSORS,
        "layers.*.query_norm.weight": ("model.layers.*.self_attn.q_norm.weight",),
        "layers.*.key_norm.weight": ("model.layers.*.self_attn.k_norm.weight",),
    },
)
