"""What a model family is: its name in a checkpoint, its differences from the common decoder, its tensor names.

A family is one value in one file of ``families/``, listed in :mod:`penstock.models.registry`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from penstock.models.fields import Fields


@dataclass(frozen=True)
class Traits:
    """The switches of the decoder that a family sets from its own fields of config.json."""

    head_dim: int
    qk_norm: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False


@dataclass(frozen=True)
class Family:
    """``traits`` reads the family's own fields and refuses what is not implemented.

    ``tensors`` maps a decoder parameter to the checkpoint tensors whose rows, in order, make it up;
    ``*`` stands for the layer's number.  ``fields`` writes the traits back as config.json says them.
    """

    architecture: str
    model_type: str
    traits: Callable[[Fields], Traits]
    fields: Callable[[Traits], Mapping[str, object]]
    tensors: Mapping[str, tuple[str, ...]]


# The names that transformers gives the tensors of a Llama-like decoder.
COMMON_TENSORS: Mapping[str, tuple[str, ...]] = {
    "embedding": ("model.embed_tokens.weight",),
    "layers.*.attention_norm.weight": ("model.layers.*.input_layernorm.weight",),
    "layers.*.qkv.weight": (
        "model.layers.*.self_attn.q_proj.weight",
        "model.layers.*.self_attn.k_proj.weight",
        "model.layers.*.self_attn.v_proj.weight",
    ),
    "layers.*.qkv.bias": (
        "model.layers.*.self_attn.q_proj.bias",
        "model.layers.*.self_attn.k_proj.bias",
        "model.layers.*.self_attn.v_proj.bias",
    ),
    "layers.*.output.weight": ("model.layers.*.self_attn.o_proj.weight",),
    "layers.*.output.bias": ("model.layers.*.self_attn.o_proj.bias",),
    "layers.*.mlp_norm.weight": ("model.layers.*.post_attention_layernorm.weight",),
    "layers.*.gate_up.weight": ("model.layers.*.mlp.gate_proj.weight", "model.layers.*.mlp.up_proj.weight"),
    "layers.*.gate_up.bias": ("model.layers.*.mlp.gate_proj.bias", "model.layers.*.mlp.up_proj.bias"),
    "layers.*.down.weight": ("model.layers.*.mlp.down_proj.weight",),
    "layers.*.down.bias": ("model.layers.*.mlp.down_proj.bias",),
    "norm.weight": ("model.norm.weight",),
    "head": ("lm_head.weight",),
}
