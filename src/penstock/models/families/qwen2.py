"""Qwen2 and Qwen2.5, dense (arXiv 2407.10671, 2412.15115): Llama with biases on queries, keys and values alone."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.models.family import COMMON_TENSORS, Family
from penstock.models.fields import Fields
from penstock.models.layer_fields import read_head_dim, read_layers, write_windows
from penstock.models.rope_fields import read_rope
from penstock.models.traits import Traits


def _traits(fields: Fields) -> Traits:
    head_dim = read_head_dim(fields)
    first_sliding = fields.integer("max_window_layers", 0, 1 << 10)
    return Traits(
        head_dim=head_dim,
        layers=read_layers(fields, read_rope(fields, head_dim), lambda index: index >= first_sliding),
        qkv_bias=True,
    )


def _fields(traits: Traits) -> Mapping[str, object]:
    return {
        "use_sliding_window": any(layer.window is not None for layer in traits.layers),
        **write_windows(traits.layers),
    }


QWEN2 = Family(
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    traits=_traits,
    fields=_fields,
    tensors=COMMON_TENSORS,
    defaults={
        "num_key_value_heads": 32,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
)
