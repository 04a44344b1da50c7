"""Rotary frequencies: how fast each pair of a head's dimensions turns with the position.

In: the rope part of a model's configuration; out: float32 tensors.  Keeps no table per position.
Nothing here depends on a request's length, so that keys stay valid as a sequence grows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Position interpolation (arXiv 2306.15595): all frequencies divided by ``factor``."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's context extension: slow frequencies divided by ``factor``, fast ones kept, a ramp between.

    ``low_freq_factor`` and ``high_freq_factor`` bound the ramp in turns per ``original_max_position`` tokens.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): the same idea with a ramp over dimensions; ``amplitude`` multiplies what is rotated.

    ``fast_turns`` and ``slow_turns`` per ``original_max_position`` tokens bound the ramp, at whole dimensions where
    ``truncate``.
    """

    factor: float
    original_max_position: int
    amplitude: float
    fast_turns: float = 32.0
    slow_turns: float = 1.0
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class LongRopeScaling:
    """LongRoPE (arXiv 2402.13753): every frequency divided by a factor of its own; ``amplitude`` as in YaRN.

    ``long`` factors serve contexts beyond ``original_max_position``, ``short`` ones the others.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_max_position: int
    amplitude: float


Scaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """``theta`` is the base of the geometric series of wavelengths.

    Of each head the first ``share`` of its dimensions turn; the others stay as they are.
    """

    theta: float
    scaling: Scaling | None = None
    share: float = 1.0

    def num_rotated(self, head_dim: int) -> int:
        """How many dimensions of a head turn."""
        return int(head_dim * self.share)

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by."""
        return self.scaling.amplitude if isinstance(self.scaling, YarnScaling | LongRopeScaling) else 1.0


def inverse_frequencies(rope: RopeConfig, head_dim: int, context_tokens: int) -> Tensor:
    """Radians per token of each pair that turns, float32 on the CPU whatever the ambient device.

    ``context_tokens``: the longest sequence that will be computed.
    """
    size = rope.num_rotated(head_dim)
    wavelengths = rope.theta ** (torch.arange(0, size, 2, dtype=torch.int64, device="cpu").float() / size)
    match rope.scaling:
        case None:
            return 1.0 / wavelengths
        case LinearScaling(factor):
            return 1.0 / wavelengths / factor
        case Llama3Scaling():
            return _llama3(1.0 / wavelengths, rope.scaling)
        case YarnScaling():
            return _yarn(wavelengths, rope.theta, rope.scaling)
        case LongRopeScaling(short, long, original_max_position):
            factors = long if context_tokens > original_max_position else short
            return 1.0 / (torch.tensor(factors, dtype=torch.float32, device="cpu") * wavelengths)


def rotation(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [T, R] float32 for positions[T] and frequencies[R/2]: each angle stands at i and at i + R/2.

    The first half of sin is negated, so that x rotated is x * cos + (x with its halves swapped) * sin.
    """
    angles = positions.float().unsqueeze(1) * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def _llama3(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    turns = scaling.original_max_position * plain / (2 * math.pi)
    ramp = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = ramp.clamp(0.0, 1.0)
    return (1 - kept) * plain / scaling.factor + kept * plain


def _yarn(wavelengths: Tensor, theta: float, scaling: YarnScaling) -> Tensor:
    num_pairs = len(wavelengths)

    def pair_of(turns: float) -> float:
        """The pair, counted in dimensions, that turns so often within the original context."""
        tokens_per_radian = scaling.original_max_position / (turns * 2 * math.pi)
        return 2 * num_pairs * math.log(tokens_per_radian) / (2 * math.log(theta))

    first, last = pair_of(scaling.fast_turns), pair_of(scaling.slow_turns)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * num_pairs - 1)
    pairs = torch.arange(num_pairs, dtype=torch.float32, device="cpu")
    slowed = ((pairs - first) / max(last - first, 0.001)).clamp(0.0, 1.0)
    kept = 1 - slowed
    return 1.0 / (scaling.factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept
