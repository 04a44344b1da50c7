"""Mixtral (arXiv 2401.04088): Mistral whose feed-forward is, in every layer, the best two of eight experts."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.models.family import COMMON_TENSORS, Family
from penstock.models.fields import Fields
from penstock.models.layer_fields import read_head_dim, read_layers, with_experts, write_windows
from penstock.models.rope_fields import read_rope
from penstock.models.traits import ExpertSpec, Traits


def _traits(fields: Fields) -> Traits:
    head_dim = read_head_dim(fields)
    num = fields.integer("num_local_experts", 1, 1 << 12)
    experts = ExpertSpec(
        num=num,
        per_token=fields.integer("num_experts_per_tok", 1, num),
        intermediate_size=fields.integer("intermediate_size", 1, 1 << 20),
        renormalise=True,
    )
    layers = read_layers(fields, read_rope(fields, head_dim), lambda index: True)
    return Traits(head_dim=head_dim, layers=with_experts(layers, experts, lambda index: True))


def _fields(traits: Traits) -> Mapping[str, object]:
    experts = traits.layers[0].experts
    assert experts is not None
    return {
        "sliding_window": write_windows(traits.layers)["sliding_window"],
        "num_local_experts": experts.num,
        "num_experts_per_tok": experts.per_token,
    }


MIXTRAL = Family(
    architecture="MixtralForCausalLM",
    model_type="mixtral",
    traits=_traits,
    fields=_fields,
    tensors={
        **COMMON_TENSORS,
        "layers.*.mlp.router.weight": ("model.layers.*.block_sparse_moe.gate.weight",),
        "layers.*.mlp.expert_gate_up.weight": (
            "model.layers.*.block_sparse_moe.experts.#.w1.weight",
            "model.layers.*.block_sparse_moe.experts.#.w3.weight",
        ),
        "layers.*.mlp.expert_down.weight": ("model.layers.*.block_sparse_moe.experts.#.w2.weight",),
    },
    defaults={
        "num_key_value_heads": 8,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-5,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
)
