"""Qwen3, dense (arXiv 2505.09388): RMSNorm on each head of queries and keys; a head size that stands alone."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.models.family import COMMON_TENSORS, Family
from penstock.models.fields import Fields
from penstock.models.layer_fields import read_head_dim, read_layers, write_windows
from penstock.models.rope_fields import read_rope
from penstock.models.traits import Traits


def _traits(fields: Fields) -> Traits:
    head_dim = read_head_dim(fields)
    attention_bias = fields.flag("attention_bias", False)
    first_sliding = fields.integer("max_window_layers", 0, 1 << 10)
    return Traits(
        head_dim=head_dim,
        layers=read_layers(fields, read_rope(fields, head_dim), lambda index: index >= first_sliding),
        qk_norm="per_head",
        qkv_bias=attention_bias,
        output_bias=attention_bias,
    )


def _fields(traits: Traits) -> Mapping[str, object]:
    return {
        "attention_bias": traits.qkv_bias,
        "use_sliding_window": any(layer.window is not None for layer in traits.layers),
        **write_windows(traits.layers),
    }


QWEN3 = Family(
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    traits=_traits,
    fields=_fields,
    tensors=COMMON_TENSORS,
    defaults={
        "head_dim": 128,
        "num_key_value_heads": 32,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
)
