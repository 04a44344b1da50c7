"""Rotary frequencies: how fast each pair of a head's dimensions turns with the position.

In: the rope part of a model's configuration; out: float32 tensors.  Keeps no table per position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's context extension: slow frequencies divided by ``factor``, fast ones kept, a ramp between.

    ``low_freq_factor`` and ``high_freq_factor`` bound the ramp in turns per ``original_max_position`` tokens.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True)
class RopeConfig:
    """``theta`` is the base of the geometric series of wavelengths."""

    theta: float
    scaling: Llama3Scaling | None = None


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Radians per token of each of the ``head_dim / 2`` pairs, float32 on the CPU whatever the ambient device."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").float() / head_dim
    plain = 1.0 / rope.theta**exponents
    return plain if rope.scaling is None else _scaled(plain, rope.scaling)


def rotation(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [T, D] float32 for positions[T] and frequencies[D/2]: each angle stands at i and at i + D/2.

    The first half of sin is negated, so that x rotated is x * cos + (x with its halves swapped) * sin.
    """
    angles = positions.float().unsqueeze(1) * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def _scaled(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    turns = scaling.original_max_position * plain / (2 * math.pi)
    ramp = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = ramp.clamp(0.0, 1.0)
    return (1 - kept) * plain / scaling.factor + kept * plain
