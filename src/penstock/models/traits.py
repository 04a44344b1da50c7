"""What a decoder can be: the switches that a family sets and the decoder obeys.

Values only: a family reads them from config.json, :class:`~penstock.models.config.ModelConfig` adds the sizes.
What varies from layer to layer is a tuple with one entry per layer, so that no layer asks what it is while it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from penstock.models.rope import RopeConfig

Activation = Literal["silu", "gelu", "gelu_tanh"]
NormKind = Literal["rms", "rms_plus_one", "layer"]


@dataclass(frozen=True, slots=True)
class ExpertSpec:
    """A feed-forward of ``num`` experts of ``intermediate_size``; a token passes through its ``per_token`` best.

    The best are those with the highest share in a softmax over all experts (arXiv 1701.06538).  ``renormalise``: their
    shares are scaled to sum to one.
    """

    num: int
    per_token: int
    intermediate_size: int
    renormalise: bool


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer.  ``rope`` ``None``: its attention knows no positions.  ``window``: see AttentionSpec.

    ``experts`` ``None``: one gated feed-forward of the model's ``intermediate_size``.
    """

    rope: RopeConfig | None
    window: int | None = None
    experts: ExpertSpec | None = None


@dataclass(frozen=True, kw_only=True)
class Traits:
    """The switches of a decoder; the defaults are Llama's.

    ``qk_norm``: queries and keys are normalised ``per_head``, or each as a ``whole``, before they are rotated.
    ``norm``: ``rms_plus_one`` stores weights less one and multiplies in float32; ``layer`` has biases.
    ``pre_norm``, ``post_norm``: attention and feed-forward have their input, their output normalised.
    ``attention_scale`` multiplies products of queries and keys; ``None``: one over the root of ``head_dim``.
    ``attention_softcap``, ``logits_softcap``: x becomes cap * tanh(x / cap).
    ``embedding_scale`` multiplies embedded tokens, rounded to the model's dtype first; ``residual_scale`` what a layer
    adds to the residual stream; ``logits_scale`` the logits.
    """

    head_dim: int
    layers: tuple[LayerSpec, ...]
    qk_norm: Literal["per_head", "whole"] | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    norm: NormKind = "rms"
    pre_norm: bool = True
    post_norm: bool = False
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
