"""The decoder: the one model definition that trains and serves.

In: token ids, positions, an attention to use and what adapters add; out: hidden states, and logits for the rows that
want them.
Keeps no cache and no state between calls, never initialises its parameters, and knows no device.
Argued in docs/decisions/002-table-of-ops.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from penstock.models.attention import Attend, AttentionSpec
from penstock.models.config import ModelConfig
from penstock.models.experts import Experts
from penstock.models.linear import Adapt, Linear, parameter
from penstock.models.ops import REFERENCE, Ops
from penstock.models.packed import Packed
from penstock.models.rope import inverse_frequencies
from penstock.models.traits import Activation

Rotation = tuple[Tensor, Tensor]


class Norm(nn.Module):
    """A norm over the last dimension, of the model's kind."""

    def __init__(self, size: int, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        self.weight = parameter(size, dtype=config.torch_dtype)
        self.bias = parameter(size, dtype=config.torch_dtype) if config.norm == "layer" else None
        self._eps = config.norm_eps
        self._offset = 1.0 if config.norm == "rms_plus_one" else 0.0
        self._ops = ops

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is not None:
            return self._ops.layer_norm(x, self.weight, self.bias, self._eps)
        return self._ops.norm(x, self.weight, self._eps, self._offset)

    def of_parts(self, x: Tensor) -> Tensor:
        """x[T, n * size] with each of its n parts normalised."""
        normalised: Tensor = self(x.view(len(x), -1, len(self.weight)))
        return normalised.flatten(1)


class FeedForward(nn.Module):
    """Gated: activation(gate) * up, and down again."""

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        hidden, size, bias, dtype = config.hidden_size, config.intermediate_size, config.mlp_bias, config.torch_dtype
        self._activation: Activation = config.activation
        self._ops = ops
        self.gate_up = Linear(hidden, (size, size), bias=bias, dtype=dtype, ops=ops)
        self.down = Linear(size, (hidden,), bias=bias, dtype=dtype, ops=ops)

    def forward(self, x: Tensor, adapt: Adapt | None = None) -> Tensor:
        """x[T, hidden] -> [T, hidden]."""
        changed: Tensor = self.down(self._ops.gated_activation(self.gate_up(x, adapt), self._activation), adapt)
        return changed


class Layer(nn.Module):
    """Attention and feed-forward, each added back to the residual stream that it was computed from."""

    def __init__(self, config: ModelConfig, index: int, ops: Ops) -> None:
        super().__init__()
        spec, hidden, head_dim, dtype = config.layers[index], config.hidden_size, config.head_dim, config.torch_dtype
        queries, keys = config.num_heads * head_dim, config.num_kv_heads * head_dim
        self._attention_spec = attention_spec(config, index)
        self._ops = ops
        self._widths = [queries, keys, keys]
        self._head_dim = head_dim
        self._residual_scale = config.residual_scale

        def norm(size: int, wanted: bool) -> Norm | nn.Identity:
            return Norm(size, config, ops) if wanted else nn.Identity()

        self.attention_norm = norm(hidden, config.pre_norm)
        self.qkv = Linear(hidden, (queries, keys, keys), bias=config.qkv_bias, dtype=dtype, ops=ops)
        whole = config.qk_norm == "whole"
        self.query_norm = Norm(queries if whole else head_dim, config, ops) if config.qk_norm else None
        self.key_norm = Norm(keys if whole else head_dim, config, ops) if config.qk_norm else None
        self.output = Linear(queries, (hidden,), bias=config.output_bias, dtype=dtype, ops=ops)
        self.attention_out_norm = norm(hidden, config.post_norm)
        self.mlp_norm = norm(hidden, config.pre_norm)
        self.mlp = FeedForward(config, ops) if spec.experts is None else Experts(spec.experts, config, ops)
        self.mlp_out_norm = norm(hidden, config.post_norm)

    def forward(self, x: Tensor, turn: Rotation | None, attend: Attend, adapt: Adapt | None = None) -> Tensor:
        """x[T, hidden] -> [T, hidden]; ``turn``: cos and sin of models.rope.rotation, ``None`` without positions."""
        mixed = self._attention(self.attention_norm(x), turn, attend, adapt)
        x = self._added(x, self.attention_out_norm(self.output(mixed, adapt)))
        return self._added(x, self.mlp_out_norm(self.mlp(self.mlp_norm(x), adapt)))

    def _attention(self, x: Tensor, turn: Rotation | None, attend: Attend, adapt: Adapt | None) -> Tensor:
        q, k, v = self.qkv(x, adapt).split(self._widths, dim=-1)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm.of_parts(q), self.key_norm.of_parts(k)
        q, k, v = (part.unflatten(-1, (-1, self._head_dim)) for part in (q, k, v))
        if turn is not None:
            q, k = self._ops.rope(q, k, *turn)
        return attend(self._attention_spec, q, k, v).flatten(1)

    def _added(self, x: Tensor, change: Tensor) -> Tensor:
        return x + (change if self._residual_scale == 1.0 else change * self._residual_scale)


class Decoder(nn.Module):
    """A causal language model over a table of ops.

    Constructing it allocates on the ambient device (``with torch.device("meta")``: nothing) and leaves the values
    undefined; :mod:`penstock.models.load` or a training recipe fills them.
    """

    def __init__(self, config: ModelConfig, ops: Ops = REFERENCE) -> None:
        super().__init__()
        dtype = config.torch_dtype
        self.config = config
        self.ops = ops
        self.embedding = parameter(config.vocab_size, config.hidden_size, dtype=dtype)
        self.layers = nn.ModuleList(Layer(config, index, ops) for index in range(config.num_layers))
        self.norm = Norm(config.hidden_size, config, ops)
        self.head = None if config.tie_embeddings else parameter(config.vocab_size, config.hidden_size, dtype=dtype)
        self.packed: Sequence[Packed] = ()
        self._ropes = list(dict.fromkeys(layer.rope for layer in config.layers))
        self._rope_of_layer = [self._ropes.index(layer.rope) for layer in config.layers]
        # Neither buffers nor parameters: casting the model to bf16 or materialising it from meta must not touch them.
        self._frequencies: dict[tuple[int, torch.device], Tensor] = {}

    def forward(self, token_ids: Tensor, positions: Tensor, attend: Attend, adapt: Adapt | None = None) -> Tensor:
        """Normalised hidden states [T, hidden] of token_ids[T] int64 at positions[T] int64.

        ``attend`` is called once per layer with the rotated queries and keys, and the values; ``adapt`` once per linear
        that an adapter may change.
        """
        turns = [self._turn(index, positions) for index in range(len(self._ropes))]
        x = self.embed(token_ids)
        if self.config.embedding_scale != 1.0:
            x = x * torch.tensor(self.config.embedding_scale, dtype=x.dtype, device=x.device)
        for layer, index in zip(self.layers, self._rope_of_layer, strict=True):
            x = layer(x, turns[index], attend, adapt)
        hidden: Tensor = self.norm(x)
        return hidden

    @property
    def head_parameter(self) -> str:
        """Which parameter the hidden states are multiplied by in the end."""
        return "embedding" if self.config.tie_embeddings else "head"

    def take_packed(self, packed: Sequence[Packed]) -> None:
        """Multiply by ``packed`` instead of the head, which is given up; tied embeddings are looked up there, too."""
        self.packed = packed
        delattr(self, self.head_parameter)

    def embed(self, token_ids: Tensor) -> Tensor:
        """token_ids[T] -> [T, hidden], before any scale."""
        if self.packed and self.config.tie_embeddings:
            return self.packed[0].rows(token_ids)
        return self.ops.embed(token_ids, self.embedding)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [R, vocab] float32 of hidden[R, hidden]."""
        if self.packed:
            logits = self.packed[0].logits(hidden)
        else:
            logits = self.ops.head(hidden, self.embedding if self.head is None else self.head)
        if self.config.logits_scale != 1.0:
            logits = logits * self.config.logits_scale
        return logits if self.config.logits_softcap is None else self.ops.softcap(logits, self.config.logits_softcap)

    def log_probabilities(self, logits: Tensor, token_ids: Tensor) -> Tensor:
        """Natural log-probabilities [R, K] float32 of token_ids[R, K] under logits[R, vocab].

        What the engine reports and what a trainer computes are both this.
        """
        normaliser = self.ops.log_normaliser(logits)[:, None]
        return logits.gather(1, token_ids) - normaliser

    def _turn(self, index: int, positions: Tensor) -> Rotation | None:
        rope = self._ropes[index]
        if rope is None:
            return None
        key = index, positions.device
        if key not in self._frequencies:
            context = self.config.context_tokens or self.config.max_position
            frequencies = inverse_frequencies(rope, self.config.head_dim, context)
            self._frequencies[key] = frequencies.to(positions.device)
        cos, sin = self.ops.rotation(positions, self._frequencies[key])
        return (cos, sin) if rope.amplitude == 1.0 else (cos * rope.amplitude, sin * rope.amplitude)


def attention_spec(config: ModelConfig, index: int) -> AttentionSpec:
    """What layer ``index`` tells whoever attends for it."""
    scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
    return AttentionSpec(index, scale, config.layers[index].window, config.attention_softcap)
