"""A feed-forward of experts: each token goes through the few that a router prefers for it.

In: rows; out: rows, each a weighted sum of its experts' answers, in the order of the experts' numbers.
So a row's result depends on that row alone, whatever else is in the batch: an expert sees just its rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from penstock.models.config import ModelConfig
from penstock.models.linear import Adapt, Linear, StackedLinear
from penstock.models.ops import Ops
from penstock.models.traits import Activation, ExpertSpec


class Router(Linear):
    """How much a token prefers each expert."""


class Experts(nn.Module):
    """Top-k of a softmax (arXiv 1701.06538); shares and the sum in float32, rounded once."""

    def __init__(self, spec: ExpertSpec, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        hidden, size, dtype = config.hidden_size, spec.intermediate_size, config.torch_dtype
        self._spec = spec
        self._activation: Activation = config.activation
        self._ops = ops
        self.router = Router(hidden, (spec.num,), bias=False, dtype=dtype, ops=ops)
        self.expert_gate_up = StackedLinear(hidden, (size, size), spec.num, dtype=dtype, ops=ops)
        self.expert_down = StackedLinear(size, (hidden,), spec.num, dtype=dtype, ops=ops)

    def forward(self, x: Tensor, adapt: Adapt | None = None) -> Tensor:
        """x[T, hidden] -> [T, hidden].  No adapter changes an expert or a router: loading refuses those that would."""
        shares, chosen = self._route(x)
        total = torch.zeros_like(x, dtype=torch.float32)
        for expert in sorted(set(chosen.flatten().tolist())):
            rows, slots = torch.where(chosen == expert)
            inner = self._ops.gated_activation(self.expert_gate_up.apply_one(expert, x[rows]), self._activation)
            answer = self.expert_down.apply_one(expert, inner).float() * shares[rows, slots].unsqueeze(1)
            # A row has an expert once at most: nothing is added twice to one place, so the order is the loop's.
            total = total.index_add(0, rows, answer)
        return total.to(x.dtype)

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shares [T, k] float32 and numbers [T, k] of each row's experts."""
        shares, chosen = self.router(x).float().softmax(-1).topk(self._spec.per_token, dim=-1)
        if self._spec.renormalise:
            shares = shares / shares.sum(-1, keepdim=True)
        return shares, chosen
