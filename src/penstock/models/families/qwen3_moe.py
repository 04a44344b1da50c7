"""Qwen3 with experts (arXiv 2505.09388): Qwen3 whose feed-forward is, in most layers, the best eight of 128."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.models.family import COMMON_TENSORS, Family
from penstock.models.fields import Fields
from penstock.models.layer_fields import read_head_dim, read_layers, with_experts, write_windows
from penstock.models.rope_fields import read_rope
from penstock.models.traits import ExpertSpec, Traits


def _traits(fields: Fields) -> Traits:
    head_dim = read_head_dim(fields)
    attention_bias = fields.flag("attention_bias", False)
    # transformers 5 has the common name for the number of experts as well.
    num_field = "num_experts" if fields.data.get("num_experts") is not None else "num_local_experts"
    num = fields.integer(num_field, 1, 1 << 12)
    experts = ExpertSpec(
        num=num,
        per_token=fields.integer("num_experts_per_tok", 1, num),
        intermediate_size=fields.integer("moe_intermediate_size", 1, 1 << 20),
        renormalise=fields.flag("norm_topk_prob", False),
    )
    every = fields.integer("decoder_sparse_step", 1, 1 << 10)
    dense = fields.integers("mlp_only_layers", 0, 1 << 10)
    layers = read_layers(fields, read_rope(fields, head_dim), lambda index: True)
    return Traits(
        head_dim=head_dim,
        layers=with_experts(layers, experts, lambda index: index not in dense and (index + 1) % every == 0),
        qk_norm="per_head",
        qkv_bias=attention_bias,
        output_bias=attention_bias,
    )


def _fields(traits: Traits) -> Mapping[str, object]:
    experts = next((layer.experts for layer in traits.layers if layer.experts is not None), None)
    window = write_windows(traits.layers)["sliding_window"]
    written: dict[str, object] = {
        "attention_bias": traits.qkv_bias,
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [index for index, layer in enumerate(traits.layers) if layer.experts is None],
    }
    if experts is not None:
        written |= {
            "num_experts": experts.num,
            "num_experts_per_tok": experts.per_token,
            "moe_intermediate_size": experts.intermediate_size,
            "norm_topk_prob": experts.renormalise,
        }
    return written


QWEN3_MOE = Family(
    architecture="Qwen3MoeForCausalLM",
    model_type="qwen3_moe",
    traits=_traits,
    fields=_fields,
    tensors=COMMON_TENSORS,
    defaults={
        "num_key_value_heads": 4,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "num_local_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
)
