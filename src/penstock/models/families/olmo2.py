"""OLMo 2 (arXiv 2501.00656): norms after attention and feed-forward, and on whole queries and keys."""

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
        qk_norm="whole",
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        pre_norm=False,
        post_norm=True,
    )


def _fields(traits: Traits) -> Mapping[str, object]:
    return {"attention_bias": traits.qkv_bias}


OLMO2 = Family(
    architecture="Olmo2ForCausalLM",
    model_type="olmo2",
    traits=_traits,
    fields=_fields,
    tensors={
        **COMMON_TENSORS,
        "layers.*.attention_out_norm.weight": ("model.layers.*.post_attention_layernorm.weight",),
        "layers.*.mlp_out_norm.weight": ("model.layers.*.post_feedforward_layernorm.weight",),
    },
    defaults={"rms_norm_eps": 1e-5},
)
