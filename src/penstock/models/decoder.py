"""The decoder: the one model definition that trains and serves.

In: token ids, positions and an attention to use; out: hidden states, and logits for the rows that want them.
Keeps no cache and no state between calls, never initialises its parameters, and knows no device.
Argued in docs/decisions/002-table-of-ops.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from penstock.models.attention import Attend, AttentionSpec
from penstock.models.config import ModelConfig
from penstock.models.ops import REFERENCE, Ops
from penstock.models.rope import inverse_frequencies


class Linear(nn.Module):
    """One matrix that may be several fused ones: ``parts`` are the rows of each, in order."""

    def __init__(self, inputs: int, parts: tuple[int, ...], *, bias: bool, dtype: torch.dtype, ops: Ops) -> None:
        super().__init__()
        self.parts = parts
        self.weight = _parameter(sum(parts), inputs, dtype=dtype)
        self.bias = _parameter(sum(parts), dtype=dtype) if bias else None
        self._op = ops.linear

    def forward(self, x: Tensor) -> Tensor:
        return self._op(x, self.weight, self.bias)


class Norm(nn.Module):
    """RMSNorm over the last dimension."""

    def __init__(self, size: int, eps: float, *, dtype: torch.dtype, ops: Ops) -> None:
        super().__init__()
        self.weight = _parameter(size, dtype=dtype)
        self._eps = eps
        self._op = ops.norm

    def forward(self, x: Tensor) -> Tensor:
        return self._op(x, self.weight, self._eps)


class Layer(nn.Module):
    """Attention and feed-forward, each on the normalised residual stream and added back to it."""

    def __init__(self, config: ModelConfig, index: int, ops: Ops) -> None:
        super().__init__()
        hidden, head_dim, dtype = (config.hidden_size, config.head_dim, config.torch_dtype)
        queries, keys = config.num_heads * head_dim, config.num_kv_heads * head_dim
        mlp = config.intermediate_size
        self._attention_spec = AttentionSpec(index, scale=head_dim**-0.5)
        self._ops = ops
        self._heads = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        self._head_dim = head_dim
        self.attention_norm = Norm(hidden, config.norm_eps, dtype=dtype, ops=ops)
        self.qkv = Linear(hidden, (queries, keys, keys), bias=config.qkv_bias, dtype=dtype, ops=ops)
        self.query_norm = Norm(head_dim, config.norm_eps, dtype=dtype, ops=ops) if config.qk_norm else None
        self.key_norm = Norm(head_dim, config.norm_eps, dtype=dtype, ops=ops) if config.qk_norm else None
        self.output = Linear(queries, (hidden,), bias=config.output_bias, dtype=dtype, ops=ops)
        self.mlp_norm = Norm(hidden, config.norm_eps, dtype=dtype, ops=ops)
        self.gate_up = Linear(hidden, (mlp, mlp), bias=config.mlp_bias, dtype=dtype, ops=ops)
        self.down = Linear(mlp, (hidden,), bias=config.mlp_bias, dtype=dtype, ops=ops)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x[T, hidden] -> [T, hidden]; cos, sin [T, head_dim] float32."""
        x = x + self.output(self._attention(self.attention_norm(x), cos, sin, attend))
        change: Tensor = self.down(self._ops.gated_activation(self.gate_up(self.mlp_norm(x))))
        return x + change

    def _attention(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (-1, self._head_dim)).split(self._heads, dim=1)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k = self._ops.rope(q, k, cos, sin)
        return attend(self._attention_spec, q, k, v).flatten(1)


class Decoder(nn.Module):
    """A causal language model over a table of ops.

    Constructing it allocates on the ambient device (``with torch.device("meta")``: nothing) and leaves the values
    undefined; :mod:`penstock.models.load` or a training recipe fills them.
    """

    def __init__(self, config: ModelConfig, ops: Ops = REFERENCE) -> None:
        super().__init__()
        dtype = config.torch_dtype
        self.config = config
        self._ops = ops
        self.embedding = _parameter(config.vocab_size, config.hidden_size, dtype=dtype)
        self.layers = nn.ModuleList(Layer(config, index, ops) for index in range(config.num_layers))
        self.norm = Norm(config.hidden_size, config.norm_eps, dtype=dtype, ops=ops)
        self.head = None if config.tie_embeddings else _parameter(config.vocab_size, config.hidden_size, dtype=dtype)
        # Neither a buffer nor a parameter: casting the model to bf16 or materialising it from meta must not touch it.
        frequencies = inverse_frequencies(config.rope, config.head_dim)
        self._frequencies = {frequencies.device: frequencies}

    def forward(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Normalised hidden states [T, hidden] of token_ids[T] int64 at positions[T] int64.

        ``attend`` is called once per layer with the rotated queries and keys, and the values.
        """
        cos, sin = self._ops.rotation(positions, self._frequencies_on(positions.device))
        x = self._ops.embed(token_ids, self.embedding)
        for layer in self.layers:
            x = layer(x, cos, sin, attend)
        hidden: Tensor = self.norm(x)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [R, vocab] float32 of hidden[R, hidden]."""
        return self._ops.head(hidden, self.embedding if self.head is None else self.head)

    def log_probabilities(self, logits: Tensor, token_ids: Tensor) -> Tensor:
        """Natural log-probabilities [R, K] float32 of token_ids[R, K] under logits[R, vocab].

        What the engine reports and what a trainer computes are both this.
        """
        normaliser = self._ops.log_normaliser(logits)[:, None]
        return logits.gather(1, token_ids) - normaliser

    def _frequencies_on(self, device: torch.device) -> Tensor:
        frequencies = self._frequencies.get(device)
        if frequencies is None:
            frequencies = next(iter(self._frequencies.values())).to(device)
            self._frequencies[device] = frequencies
        return frequencies


def _parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype))
