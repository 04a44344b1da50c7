"""Phi-3 and Phi-4-mini (arXiv 2404.14219, 2503.01743): fused tensors, a window, LongRoPE, heads that turn in part.

LongRoPE's short or long factors hold for a whole service: docs/decisions/004-longrope-by-context.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from penstock.models.family import COMMON_TENSORS, Family
from penstock.models.fields import Fields
from penstock.models.layer_fields import read_head_dim, read_layers, write_windows
from penstock.models.rope import LongRopeScaling
from penstock.models.rope_fields import read_rope
from penstock.models.traits import Traits

# What early releases called LongRoPE.
_LONGROPE = ("su", "yarn")


def _traits(fields: Fields) -> Traits:
    head_dim = read_head_dim(fields)
    rope = read_rope(_with_todays_names(fields), head_dim)
    return Traits(head_dim=head_dim, layers=read_layers(fields, rope, lambda index: True))


def _with_todays_names(fields: Fields) -> Fields:
    scaling = fields.object("rope_scaling")
    if scaling is None or scaling.data.get("type") not in _LONGROPE:
        return fields
    return fields.but(rope_scaling={**scaling.data, "type": "longrope"})


def _fields(traits: Traits) -> Mapping[str, object]:
    rope = traits.layers[0].rope
    # transformers' default for padding lies outside small vocabularies.
    written: dict[str, object] = {
        "pad_token_id": None,
        "sliding_window": write_windows(traits.layers)["sliding_window"],
    }
    if rope is not None and isinstance(rope.scaling, LongRopeScaling):
        written["original_max_position_embeddings"] = rope.scaling.original_max_position
    return written


PHI3 = Family(
    architecture="Phi3ForCausalLM",
    model_type="phi3",
    traits=_traits,
    fields=_fields,
    tensors={
        **COMMON_TENSORS,
        "layers.*.qkv.weight": ("model.layers.*.self_attn.qkv_proj.weight",),
        "layers.*.mlp.gate_up.weight": ("model.layers.*.mlp.gate_up_proj.weight",),
    },
    defaults={"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
)
