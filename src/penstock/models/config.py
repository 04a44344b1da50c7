"""A model's configuration: what config.json of a Hugging Face checkpoint says, checked and in our words.

In: a directory; out: a frozen value.  What this decoder does not implement is refused by name, never ignored.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from penstock.models.dtypes import TORCH_DTYPES, DType, read_dtype
from penstock.models.encoder_config import ENCODERS
from penstock.models.family import Family
from penstock.models.fields import Fields, read_object
from penstock.models.quantised import Scheme, read_scheme
from penstock.models.registry import FAMILIES, WHOLES
from penstock.models.rope import YarnScaling
from penstock.models.rope_fields import write_rope
from penstock.models.traits import Activation, Traits
from penstock.wire.errors import Problem

_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_SHARED = ("dtype", "torch_dtype", "tie_word_embeddings")
_ACTIVATION_NAMES = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Traits):
    """Sizes and switches of a decoder.

    ``max_position`` is the longest context in tokens that the model was made for, ``context_tokens`` the longest that
    will be computed (``None``: that one).  ``activation`` is that of the feed-forward's gate.
    ``scheme``: how the checkpoint has weights that it has quantised.
    ``dtype`` is the one to compute in: config.json's, with float16 read as bfloat16, and float32 where it is silent.
    """

    architecture: str
    num_heads: int
    num_kv_heads: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_position: int
    norm_eps: float
    tie_embeddings: bool
    dtype: DType
    activation: Activation = "silu"
    context_tokens: int | None = None
    scheme: Scheme | None = None

    @classmethod
    def from_directory(cls, directory: Path) -> ModelConfig:
        """Read ``directory``/config.json.

        Raises ``source_not_found``, ``checkpoint_invalid`` (file and field named) or ``checkpoint_unsupported``.
        """
        if not directory.is_dir():
            raise Problem("source_not_found", f"{directory} is not a directory.")
        fields = read_object(directory / "config.json")
        family = _family(fields)
        scheme = read_scheme(fields)
        fields = _decoder_fields(fields, family).over(family.defaults)
        num_heads = fields.integer("num_attention_heads", 1, 1 << 12)
        num_kv_heads = fields.integer("num_key_value_heads", 1, 1 << 12, default=num_heads)
        if num_heads % num_kv_heads:
            raise fields.wrong("num_key_value_heads", f"must divide num_attention_heads ({num_heads})")
        traits = family.traits(fields)
        return cls(
            **{field.name: getattr(traits, field.name) for field in dataclasses.fields(traits)},
            architecture=family.architecture,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            hidden_size=fields.integer("hidden_size", 1, 1 << 17),
            intermediate_size=fields.integer("intermediate_size", 1, 1 << 20),
            vocab_size=fields.integer("vocab_size", 1, 1 << 24),
            max_position=_max_position(fields, traits),
            norm_eps=_norm_eps(fields),
            tie_embeddings=fields.flag("tie_word_embeddings", False),
            # CPUs have no fast float16, and bfloat16, whose range is wider, cannot overflow.
            dtype=read_dtype(fields, half="bfloat16"),
            activation=_activation(fields),
            scheme=scheme,
        )

    @property
    def family(self) -> Family:
        return FAMILIES[self.architecture]

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def torch_dtype(self) -> torch.dtype:
        return TORCH_DTYPES[self.dtype]

    def to_huggingface(self) -> dict[str, Any]:
        """The object of a config.json that :meth:`from_directory` and transformers read back to the same model."""
        rope = self.layers[0].rope
        return {
            "architectures": [self.architecture],
            "model_type": self.family.model_type,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "hidden_size": self.hidden_size,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position,
            "hidden_act": _ACTIVATION_NAMES[self.activation],
            "hidden_activation": _ACTIVATION_NAMES[self.activation],
            "layer_norm_eps" if self.norm == "layer" else "rms_norm_eps": self.norm_eps,
            **({} if rope is None else write_rope(rope)),
            "tie_word_embeddings": self.tie_embeddings,
            "torch_dtype": self.dtype,
            **self.family.fields(self),
        }


def _family(fields: Fields) -> Family:
    names = fields.data.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise fields.wrong("architectures", "must be a list of one architecture's name")
    family = FAMILIES.get(names[0]) or WHOLES.get(names[0])
    if family is None:
        custom = " Its own code (auto_map) is never run, whatever is set." if "auto_map" in fields.data else ""
        known = ", ".join(sorted([*FAMILIES, *WHOLES, *ENCODERS]))
        raise fields.unsupported(
            "architectures",
            f"Supported: {known}.{custom} Take a model of one of these, or see docs/howto/add-a-model-family.md.",
        )
    return family


def _decoder_fields(fields: Fields, family: Family) -> Fields:
    """The decoder's own, of which a larger model states some for all its parts."""
    if family.whole is None or fields.data["architectures"] != [family.whole.architecture]:
        return fields
    section = fields.object(family.whole.section)
    if section is None:
        raise fields.wrong(family.whole.section, "must describe the decoder")
    shared = {key: fields.data[key] for key in _SHARED if key in fields.data}
    return section.over(shared)


def _max_position(fields: Fields, traits: Traits) -> int:
    """As stated; YaRN is mostly added by hand, beside the number that held before."""
    stated = fields.integer("max_position_embeddings", 1, 1 << 30)
    scalings = [layer.rope.scaling for layer in traits.layers if layer.rope is not None]
    stretched = [int(s.factor * s.original_max_position) for s in scalings if isinstance(s, YarnScaling)]
    return max([stated, *stretched])


def _norm_eps(fields: Fields) -> float:
    for name in ("layer_norm_eps", "norm_eps"):
        if fields.data.get("rms_norm_eps") is None and fields.data.get(name) is not None:
            return fields.number(name, 0.0, 1.0)
    return fields.number("rms_norm_eps", 0.0, 1.0, default=1e-6)


def _activation(fields: Fields) -> Activation:
    key = "hidden_activation" if fields.data.get("hidden_activation") is not None else "hidden_act"
    activation = _ACTIVATIONS.get(fields.text(key, "silu"))
    if activation is None:
        raise fields.unsupported(key, f"Supported: {', '.join(sorted(_ACTIVATIONS))}.")
    return activation
