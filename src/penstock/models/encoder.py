"""The encoder: BERT and its kin, from token ids to hidden states that have seen the whole text.

In: the token ids of one or more texts laid end to end; out: a hidden state per token, no text seeing another.
Keeps no state between calls and never initialises its parameters.  Layout: arXiv 1810.04805, norms after each part.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.models.encoder_config import EncoderConfig
from penstock.models.linear import Linear, parameter
from penstock.models.ops import REFERENCE, Ops


class Run(NamedTuple):
    """``num_texts`` texts of equal length, one after another."""

    num_texts: int
    length: int

    @property
    def num_tokens(self) -> int:
        return self.num_texts * self.length


class LayerNorm(nn.Module):
    """LayerNorm (arXiv 1607.06450) over the last dimension."""

    def __init__(self, size: int, eps: float, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = parameter(size, dtype=dtype)
        self.bias = parameter(size, dtype=dtype)
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self._eps)


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each added to what it was given and normalised afterwards."""

    def __init__(self, config: EncoderConfig, ops: Ops) -> None:
        super().__init__()
        hidden, mlp, eps, dtype = config.hidden_size, config.intermediate_size, config.norm_eps, config.torch_dtype
        self._num_heads = config.num_heads
        self.qkv = Linear(hidden, (hidden, hidden, hidden), bias=True, dtype=dtype, ops=ops)
        self.output = Linear(hidden, (hidden,), bias=True, dtype=dtype, ops=ops)
        self.attention_norm = LayerNorm(hidden, eps, dtype=dtype)
        self.up = Linear(hidden, (mlp,), bias=True, dtype=dtype, ops=ops)
        self.down = Linear(mlp, (hidden,), bias=True, dtype=dtype, ops=ops)
        self.mlp_norm = LayerNorm(hidden, eps, dtype=dtype)

    def forward(self, x: Tensor, runs: Sequence[Run]) -> Tensor:
        """x[T, hidden] -> [T, hidden], T being the tokens of all ``runs``."""
        parts = self.qkv(x).unflatten(-1, (3, self._num_heads, -1)).split([run.num_tokens for run in runs])
        mixed = torch.cat([attend_to_all(part, run) for part, run in zip(parts, runs, strict=True)])
        x = self.attention_norm(x + self.output(mixed))
        change: Tensor = self.down(F.gelu(self.up(x)))
        normed: Tensor = self.mlp_norm(x + change)
        return normed


class Encoder(nn.Module):
    """A text encoder over a table of ops, of which it uses ``embed`` and ``linear``.

    Constructing it allocates on the ambient device and leaves the values undefined, as a decoder does.
    """

    def __init__(self, config: EncoderConfig, ops: Ops = REFERENCE) -> None:
        super().__init__()
        hidden, dtype = config.hidden_size, config.torch_dtype
        self.config = config
        self._ops = ops
        self.embedding = parameter(config.vocab_size, hidden, dtype=dtype)
        self.positions = parameter(config.num_positions, hidden, dtype=dtype)
        self.token_types = parameter(config.num_token_types, hidden, dtype=dtype)
        self.embedding_norm = LayerNorm(hidden, config.norm_eps, dtype=dtype)
        self.layers = nn.ModuleList(EncoderLayer(config, ops) for _ in range(config.num_layers))

    def forward(self, token_ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """Hidden states [T, hidden] of token_ids[T] int64, which are texts of ``lengths`` tokens one after another.

        Neighbours of equal length are computed together, so texts in order of length cost least.
        Every token is of the first type: a request embeds one text, never a pair.
        """
        runs = [Run(len(list(equal)), length) for length, equal in groupby(lengths)]
        positions = positions_of(token_ids, runs, self.config.first_position)
        x = self._ops.embed(token_ids, self.embedding) + self.token_types[0]
        hidden: Tensor = self.embedding_norm(x + self._ops.embed(positions, self.positions))
        for layer in self.layers:
            hidden = layer(hidden, runs)
        return hidden


def positions_of(token_ids: Tensor, runs: Sequence[Run], first: int) -> Tensor:
    """Positions [T] int64, from ``first`` on in each text.

    A padding token inside a text, which a caller may spell, has the position before the first and is not counted:
    RoBERTa's own code has it so.  BERT's first position is 0, and no token has the id before that.
    """
    padding = first - 1
    parts = []
    for ids, run in zip(torch.split(token_ids, [run.num_tokens for run in runs]), runs, strict=True):
        counted = (ids != padding).long().view(run.num_texts, run.length)
        parts.append((counted.cumsum(1) * counted + padding).flatten())
    return torch.cat(parts)


def attend_to_all(qkv: Tensor, run: Run) -> Tensor:
    """Texts whose tokens see all of their own and none of another's: qkv[T, 3, heads, D] -> [T, heads * D].

    One call per run costs the sum of the squares instead of the square of the sum, and needs no mask.
    """
    q, k, v = qkv.view(run.num_texts, run.length, *qkv.shape[1:]).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(run.num_tokens, -1)
