"""What a model family is: its name in a checkpoint, its differences from the common decoder, its tensor names.

A family is one value in one file of ``families/``, listed in :mod:`penstock.models.registry`.
docs/howto/add-a-model-family.md leads through making one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from penstock.models.fields import Fields
from penstock.models.traits import Traits


@dataclass(frozen=True)
class Family:
    """``traits`` reads the family's own fields of config.json and refuses what is not implemented.

    ``fields`` writes the traits back as config.json says them; ``defaults`` are the values that the family's files
    may leave out.  ``whole``: what else the decoder may come as a part of.
    ``tensors`` maps a decoder parameter to the checkpoint tensors that make it up: ``*`` stands for the layer's number
    and ``#`` for an expert's.  Where a parameter fuses several matrices, each has a tensor, or one tensor has them all.
    """

    architecture: str
    model_type: str
    traits: Callable[[Fields], Traits]
    fields: Callable[[Traits], Mapping[str, object]]
    tensors: Mapping[str, tuple[str, ...]]
    defaults: Mapping[str, object] = field(default_factory=dict)
    whole: Whole | None = None


@dataclass(frozen=True)
class Whole:
    """A larger model that has this family's decoder as a part, say beside one that sees images.

    Its ``architecture`` states the decoder's fields in ``section`` of config.json.  ``prefixes`` are how the names of
    the decoder's tensors begin there, and how they begin in a checkpoint of its own; the first that fits counts.
    Names that begin with one of ``unread`` belong to the other parts.
    """

    architecture: str
    section: str
    prefixes: Mapping[str, str]
    unread: tuple[str, ...]

    def own_name(self, name: str) -> str | None:
        """What tensor ``name`` is called in a checkpoint of the decoder's own; ``None``: it is of another part."""
        if name.startswith(self.unread):
            return None
        theirs = next((prefix for prefix in self.prefixes if name.startswith(prefix)), "")
        return self.prefixes.get(theirs, "") + name.removeprefix(theirs)


# The names that transformers gives the tensors of a Llama-like decoder.
COMMON_TENSORS: Mapping[str, tuple[str, ...]] = {
    "embedding": ("model.embed_tokens.weight",),
    "layers.*.attention_norm.weight": ("model.layers.*.input_layernorm.weight",),
    "layers.*.attention_norm.bias": ("model.layers.*.input_layernorm.bias",),
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
    "layers.*.query_norm.weight": ("model.layers.*.self_attn.q_norm.weight",),
    "layers.*.key_norm.weight": ("model.layers.*.self_attn.k_norm.weight",),
    "layers.*.output.weight": ("model.layers.*.self_attn.o_proj.weight",),
    "layers.*.output.bias": ("model.layers.*.self_attn.o_proj.bias",),
    "layers.*.mlp_norm.weight": ("model.layers.*.post_attention_layernorm.weight",),
    "layers.*.mlp_norm.bias": ("model.layers.*.post_attention_layernorm.bias",),
    "layers.*.mlp.gate_up.weight": ("model.layers.*.mlp.gate_proj.weight", "model.layers.*.mlp.up_proj.weight"),
    "layers.*.mlp.gate_up.bias": ("model.layers.*.mlp.gate_proj.bias", "model.layers.*.mlp.up_proj.bias"),
    "layers.*.mlp.down.weight": ("model.layers.*.mlp.down_proj.weight",),
    "layers.*.mlp.down.bias": ("model.layers.*.mlp.down_proj.bias",),
    "layers.*.mlp.router.weight": ("model.layers.*.mlp.gate.weight",),
    "layers.*.mlp.expert_gate_up.weight": (
        "model.layers.*.mlp.experts.#.gate_proj.weight",
        "model.layers.*.mlp.experts.#.up_proj.weight",
    ),
    "layers.*.mlp.expert_down.weight": ("model.layers.*.mlp.experts.#.down_proj.weight",),
    "norm.weight": ("model.norm.weight",),
    "norm.bias": ("model.norm.bias",),
    "head": ("lm_head.weight",),
}

# Where both sides of attention and feed-forward are normalised, as Gemma names it.
POST_NORM_TENSORS: Mapping[str, tuple[str, ...]] = {
    "layers.*.attention_out_norm.weight": ("model.layers.*.post_attention_layernorm.weight",),
    "layers.*.mlp_norm.weight": ("model.layers.*.pre_feedforward_layernorm.weight",),
    "layers.*.mlp_out_norm.weight": ("model.layers.*.post_feedforward_layernorm.weight",),
}
