"""Mistral (arXiv 2310.06825): Llama with a sliding window on every layer, where config.json states one."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.models.family import COMMON_TENSORS, Family
from penstock.models.fields import Fields
from penstock.models.layer_fields import read_head_dim, read_layers, write_windows
from penstock.models.rope_fields import read_rope
from penstock.models.traits import Traits


def _traits(fields: Fields) -> Traits:
    head_dim = read_head_dim(fields)
    return Traits(head_dim=head_dim, layers=read_layers(fields, read_rope(fields, head_dim), lambda index: True))


def _fields(traits: Traits) -> Mapping[str, object]:
    # Other layers than sliding ones have another architecture; transformers warns of the field here.
    return {"sliding_window": write_windows(traits.layers)["sliding_window"]}


MISTRAL = Family(
    architecture="MistralForCausalLM",
    model_type="mistral",
    traits=_traits,
    fields=_fields,
    tensors=COMMON_TENSORS,
    defaults={"num_key_value_heads": 8, "sliding_window": 4096},
)
