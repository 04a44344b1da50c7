"""A model's configuration: what config.json of a Hugging Face checkpoint says, checked and in our words.

In: a directory; out: a frozen value.  What this decoder does not implement is refused by name, never ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from penstock.models.family import Family, Traits
from penstock.models.fields import Fields, read_object
from penstock.models.registry import FAMILIES
from penstock.models.rope import Llama3Scaling, RopeConfig
from penstock.wire.errors import Problem

DType = Literal["bfloat16", "float32"]
# Files in half precision are widened to bf16's range: CPUs have no fast fp16, and bf16 cannot overflow.
_COMPUTE_DTYPES: dict[str, DType] = {"bfloat16": "bfloat16", "float32": "float32", "float16": "bfloat16"}
_TORCH_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of a decoder.  ``max_position`` is the context in tokens.

    ``dtype`` is the one to compute in: config.json's, with float16 read as bfloat16, and float32 where it is silent.
    """

    architecture: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_position: int
    norm_eps: float
    rope: RopeConfig
    tie_embeddings: bool
    qk_norm: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    dtype: DType

    @classmethod
    def from_directory(cls, directory: Path) -> ModelConfig:
        """Read ``directory``/config.json.

        Raises ``source_not_found``, ``checkpoint_invalid`` (file and field named) or ``checkpoint_unsupported``.
        """
        if not directory.is_dir():
            raise Problem("source_not_found", f"{directory} is not a directory.")
        fields = read_object(directory / "config.json")
        family = _family(fields)
        _refuse_unsupported(fields)
        traits = family.traits(fields)
        num_heads = fields.integer("num_attention_heads", 1, 1 << 12)
        num_kv_heads = fields.integer("num_key_value_heads", 1, 1 << 12, default=num_heads)
        if num_heads % num_kv_heads:
            raise fields.wrong("num_key_value_heads", f"must divide num_attention_heads ({num_heads})")
        if traits.head_dim % 2:
            raise fields.wrong("head_dim", "must be even for rotary positions")
        return cls(
            architecture=family.architecture,
            num_layers=fields.integer("num_hidden_layers", 1, 1 << 10),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=traits.head_dim,
            hidden_size=fields.integer("hidden_size", 1, 1 << 17),
            intermediate_size=fields.integer("intermediate_size", 1, 1 << 20),
            vocab_size=fields.integer("vocab_size", 1, 1 << 24),
            max_position=fields.integer("max_position_embeddings", 1, 1 << 30),
            norm_eps=fields.number("rms_norm_eps", 0.0, 1.0, default=1e-6),
            rope=_rope(fields),
            tie_embeddings=fields.flag("tie_word_embeddings", False),
            qk_norm=traits.qk_norm,
            qkv_bias=traits.qkv_bias,
            output_bias=traits.output_bias,
            mlp_bias=traits.mlp_bias,
            dtype=_dtype(fields),
        )

    @property
    def family(self) -> Family:
        return FAMILIES[self.architecture]

    @property
    def torch_dtype(self) -> torch.dtype:
        return _TORCH_DTYPES[self.dtype]

    def to_huggingface(self) -> dict[str, Any]:
        """The object of a config.json that :meth:`from_directory` and transformers read back to the same model."""
        traits = Traits(self.head_dim, self.qk_norm, self.qkv_bias, self.output_bias, self.mlp_bias)
        return {
            "architectures": [self.architecture],
            "model_type": self.family.model_type,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position,
            "hidden_act": "silu",
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope.theta,
            "rope_scaling": _rope_scaling(self.rope.scaling),
            "tie_word_embeddings": self.tie_embeddings,
            "torch_dtype": self.dtype,
            **self.family.fields(traits),
        }


def _family(fields: Fields) -> Family:
    names = fields.data.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise fields.wrong("architectures", "must be a list of one architecture's name")
    family = FAMILIES.get(names[0])
    if family is None:
        custom = " Code from the checkpoint (auto_map) is never run." if "auto_map" in fields.data else ""
        raise fields.unsupported("architectures", f"Supported: {', '.join(sorted(FAMILIES))}.{custom}")
    return family


def _refuse_unsupported(fields: Fields) -> None:
    if fields.data.get("quantization_config") is not None:
        raise fields.unsupported("quantization_config", "Quantised checkpoints are not supported; take the bf16 one.")
    if fields.text("hidden_act", "silu") != "silu":
        raise fields.unsupported("hidden_act", "Only silu is supported.")
    if fields.number("partial_rotary_factor", 0.0, 1.0, default=1.0) != 1.0:
        raise fields.unsupported("partial_rotary_factor", "Only rotation of whole heads (1.0) is supported.")
    kinds = fields.data.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
        raise fields.unsupported("layer_types", "Only full_attention layers are supported.")
    # Qwen3 states a window that its switch turns off; where there is no switch, a stated window is in use.
    if fields.data.get("sliding_window") is not None and fields.flag("use_sliding_window", True):
        raise fields.unsupported("sliding_window", "Sliding-window attention is not supported.")


def _rope(fields: Fields) -> RopeConfig:
    """transformers 5 writes theta and scaling into rope_parameters; earlier ones rope_theta beside rope_scaling."""
    scaling = fields.object("rope_parameters") or fields.object("rope_scaling")
    stated = scaling if scaling is not None and scaling.data.get("rope_theta") is not None else fields
    theta = stated.number("rope_theta", 1.0, 1e12, default=10_000.0)
    if scaling is None:
        return RopeConfig(theta)
    key = "rope_type" if "rope_type" in scaling.data else "type"
    kind = scaling.text(key, "default")
    if kind == "default":
        return RopeConfig(theta)
    if kind != "llama3":
        raise scaling.unsupported(key, "Supported kinds of rope scaling: default, llama3.")
    low = scaling.number("low_freq_factor", 1e-3, 1e3)
    high = scaling.number("high_freq_factor", 1e-3, 1e3)
    if high <= low:
        raise scaling.wrong("high_freq_factor", f"must exceed low_freq_factor ({low:g})")
    return RopeConfig(
        theta,
        Llama3Scaling(
            factor=scaling.number("factor", 1.0, 1e4),
            low_freq_factor=low,
            high_freq_factor=high,
            original_max_position=scaling.integer("original_max_position_embeddings", 1, 1 << 30),
        ),
    )


def _rope_scaling(scaling: Llama3Scaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_position,
    }


def _dtype(fields: Fields) -> DType:
    key = "dtype" if fields.data.get("dtype") is not None else "torch_dtype"
    dtype = _COMPUTE_DTYPES.get(fields.text(key, "float32"))
    if dtype is None:
        raise fields.unsupported(key, f"Supported: {', '.join(sorted(_COMPUTE_DTYPES))}.")
    return dtype
